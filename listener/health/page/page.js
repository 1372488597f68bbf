'use strict'
// Whatever is shown goes into the page as text, never as markup: processes choose their own names.
{
  const $ = id => document.getElementById(id)
  // The handler may be mounted anywhere, with or without a slash at the end.
  const base = location.pathname.replace(/\/*$/, '/')
  const period = 10_000 // between two looks without an event: counts of connections have none
  const patience = 15_000
  const remembered = 200 // events
  const idle = 60_000 // a hidden page then gives its stream back: browsers allow six connections to an origin

  let answer = null // of the last look that succeeded
  let opened = 0 // by the clock of the service, at the first look
  let asked = {ranges: '', network: ''}
  let sort = {by: 'port', down: false}

  // element makes one; attributes that are null or false are left out, children that are null too.
  function element(name, attributes, ...children) {
    const e = document.createElement(name)
    for (const [key, value] of Object.entries(attributes ?? {})) {
      if (value !== null && value !== false) e.setAttribute(key, value)
    }
    e.append(...children.filter(c => c !== null && c !== ''))
    return e
  }
  function show(id, text) {
    const e = $(id)
    e.hidden = text === ''
    if (e.textContent !== text) e.textContent = text
  }
  const count = (n, one, many = one + 's') => `${n} ${n === 1 ? one : many}`
  const flag = state => element('span', {class: 'flag', 'data-state': state, 'aria-hidden': 'true'})
  const clock = new Intl.DateTimeFormat(undefined, {hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23'})
  const day = new Intl.DateTimeFormat(undefined, {day: 'numeric', month: 'short'})
  const calendar = new Intl.DateTimeFormat(undefined, {dateStyle: 'full', timeStyle: 'long'})

  // Times

  function age(date) {
    const s = Math.max(0, (Date.now() - date) / 1000)
    if (s < 60) return 'moments'
    if (s < 3600) return `${Math.floor(s / 60)} min`
    if (s < 48 * 3600) return `${Math.floor(s / 3600)} h`
    return `${Math.floor(s / 86400)} days`
  }
  // moment is when something was: the time of a day, or the day where that is longer ago.
  function moment(text) {
    const date = new Date(text)
    const format = Date.now() - date < 20 * 3600_000 ? clock : day
    return element('time', {datetime: text, title: calendar.format(date)}, format.format(date))
  }
  // past is how long ago something was, and keeps up to date.
  function past(text) {
    const date = new Date(text)
    return element('time', {datetime: text, title: calendar.format(date), 'data-age': date.getTime()}, age(date))
  }
  function keepTime() {
    for (const e of document.querySelectorAll('[data-age]')) {
      const text = age(Number(e.dataset.age))
      if (e.textContent !== text) e.textContent = text
    }
  }

  // Ports

  const words = {healthy: 'healthy', 'in use': 'in use', available: 'free', reserved: 'reserved', locked: 'locked'}
  const order = ['trouble', 'locked', 'in use', 'reserved', 'healthy', 'available']
  // figure is what a port is shown as: a record that is out of date is what matters of a free one.
  const figure = p => p.records.length > 0 && p.state === 'available' ? 'trouble' : p.state
  const word = p => figure(p) === 'trouble' ? 'stale record' : (words[p.state] ?? p.state)
  const since = p => p.holders.find(h => h.started)?.started ?? null
  const tick = p => Math.floor(Date.parse(since(p) ?? 0) / 100)
  // told is what makes a port another one than before. When a process started is known to 10 ms, and differs from look to look.
  const told = p => JSON.stringify(p, (key, value) => key === 'started' ? undefined : value)

  // Holders of several sockets stand there several times.
  function byProcess(holders) {
    const processes = new Map()
    for (const h of holders) {
      const key = h.pid || h.address
      if (processes.has(key)) processes.get(key).addresses.push(h.address)
      else processes.set(key, {...h, addresses: [h.address]})
    }
    return [...processes.values()]
  }
  const called = h => h.pid === 0 ? 'a process that cannot be seen' : (h.command || 'a process')
  const place = h => h.unit ? `unit ${h.unit}` : h.container ? `container ${h.container.slice(0, 12)}` : ''
  const who = h => [h.pid ? `pid ${h.pid}` : '', h.user ? `user ${h.user}` : '', place(h), h.state === 'connected' ? 'a connection' : '']
    .filter(Boolean).join(', ')

  function about(h) {
    return [
      ['addresses', h.addresses.join(', ')], ['program', h.executable], ['arguments', h.args?.slice(1).join(' ')], ['directory', h.dir],
      ['not stopped by berth:', h.refusal],
    ].filter(([, text]) => text).map(([name, text]) => element('li', null, `${name} `, element('code', null, text)))
  }

  // disclosure is a summary that opens to a list.
  function disclosure(label, summary, items) {
    return element('details', null, element('summary', {'aria-label': label}, ...summary), element('ul', null, ...items))
  }

  function holderCell(p) {
    const cell = element('td', {role: 'cell', class: 'holder'})
    const processes = byProcess(p.holders)
    if (processes.length === 0) {
      if (p.service) cell.append(element('b', null, p.service))
      if (p.state !== 'available') cell.append(element('span', {class: 'who'}, p.state === 'locked' ? 'has the lock, not the port' : 'not known'))
      return cell
    }
    const [first, ...rest] = processes
    const name = p.service || called(first)
    const more = [p.service && p.service !== called(first) ? called(first) : '', who(first), rest.length > 0 ? `and ${rest.length} more` : '']
      .filter(Boolean).join(', ')
    const told = [element('b', null, name), element('span', {class: 'who'}, more)]
    const facts = processes.flatMap(h => [rest.length > 0 ? element('li', {class: 'process'}, `${called(h)}, ${who(h)}`) : null, ...about(h)])
    if (!first.args && rest.length === 0) cell.append(...told)
    else cell.append(disclosure(`${name}, ${more}, port ${p.port}`, told, facts))
    return cell
  }

  function todoCell(p) {
    const [first, ...rest] = p.healthy ? [] : p.recommendations
    const cell = element('td', {role: 'cell', class: 'todo'}, ...p.records.map(text => element('span', {class: 'record'}, text)))
    if (first) cell.append(element('span', {class: 'advice'}, first))
    if (rest.length > 0) {
      const label = `or ${count(rest.length, 'other way', 'other ways')}`
      cell.append(disclosure(`${label}, port ${p.port}`, [label], rest.map(text => element('li', null, text))))
    }
    return cell
  }

  function row(p) {
    const started = since(p)
    return element('tr', {role: 'row', id: `port-${p.port}`},
      element('td', {role: 'cell', class: 'port'}, String(p.port)),
      element('td', {role: 'cell', class: 'statecell'}, element('span', {class: 'state'}, flag(figure(p)), word(p)),
        p.own ? element('span', {class: 'more'}, own()) : null,
        p.until ? element('span', {class: 'more'}, 'until ', moment(p.until)) : null),
      holderCell(p),
      element('td', {role: 'cell', class: 'since'}, started ? past(started) : null),
      todoCell(p))
  }

  const own = () => answer.service === null ? 'this page' : 'this service'
  const haystack = p => [word(p), p.state, p.service, p.own ? own() : '',
    ...p.holders.flatMap(h => [h.command, h.user, h.unit, h.container, h.address])].join('\n').toLowerCase()

  // matcher makes a test of what is typed: every word has to be found in a port.
  function matcher(text) {
    const tests = text.toLowerCase().split(/[\s,]+/).filter(Boolean).map(term => {
      const range = /^(\d+)-(\d+)$/.exec(term)
      if (range) return p => p.port >= Number(range[1]) && p.port <= Number(range[2])
      if (/^\d+$/.test(term)) return p => String(p.port).startsWith(term) || p.holders.some(h => String(h.pid) === term)
      return p => haystack(p).includes(term)
    })
    return p => tests.every(test => test(p))
  }

  const compare = {
    port: (a, b) => a.port - b.port,
    state: (a, b) => order.indexOf(figure(a)) - order.indexOf(figure(b)),
    holder: (a, b) => (a.service || a.holders[0]?.command || '').localeCompare(b.service || b.holders[0]?.command || ''),
    since: (a, b) => tick(b) - tick(a),
  }

  // succeed puts a row in the place of another: what was open stays open, and the keyboard where it was.
  function succeed(old, fresh) {
    const summaries = [...fresh.querySelectorAll('summary')]
    let focused = null
    old.querySelectorAll('summary').forEach((summary, i) => {
      if (!summaries[i]) return
      summaries[i].parentElement.open = summary.parentElement.open
      if (summary === document.activeElement) focused = summaries[i]
    })
    old.replaceWith(fresh)
    focused?.focus({preventScroll: true})
  }

  // Rows that say the same stay as they are, so that a reader loses neither focus nor place.
  const rows = new Map()
  function renderRows(ports, matches) {
    const shown = ports.filter(matches).sort((a, b) => (sort.down ? -1 : 1) * compare[sort.by](a, b) || a.port - b.port)
    const first = rows.size === 0
    const gone = new Set(rows.keys())
    let after = null
    for (const p of shown) {
      const key = p.port
      gone.delete(key)
      const text = told(p)
      let entry = rows.get(key)
      if (entry?.text !== text) {
        const fresh = row(p)
        if (!first && known.get(key) !== text) fresh.classList.add('changed')
        if (entry) succeed(entry.node, fresh)
        entry = {text, node: fresh}
        rows.set(key, entry)
      }
      const place = after ? after.nextSibling : $('rows').firstChild
      if (place !== entry.node) $('rows').insertBefore(entry.node, place)
      after = entry.node
    }
    for (const key of gone) {
      rows.get(key).node.remove()
      rows.delete(key)
    }
    known = new Map(ports.map(p => [p.port, told(p)]))
    return shown.length
  }
  let known = new Map() // what was last told of each port, shown or not

  const dash = text => text.replace('-', '\u2013')
  const bounds = range => {
    const [low, high = low] = range.split('-').map(Number)
    return [low, high]
  }
  const tooMany = 256 // flags that a strip can have and still be read

  function renderStrips(system, matches) {
    const at = new Map(system.ports.map(p => [p.port, p]))
    const free = []
    const strips = []
    for (const range of system.ranges) {
      const [low, high] = bounds(range)
      const counts = {}
      const cells = []
      for (let port = low; port <= high; port++) {
        const p = at.get(port) ?? {port, state: 'available', records: [], holders: [], service: ''}
        counts[word(p)] = (counts[word(p)] ?? 0) + 1
        if (p.state === 'available') {
          const last = free.at(-1)
          if (last?.[1] === port - 1) last[1] = port
          else free.push([port, port])
        }
        if (high - low < tooMany) {
          cells.push(element('span', {class: matches(p) ? 'flag' : 'flag dim', 'data-state': figure(p), title: `${port} ${word(p)}`}))
        }
      }
      if (cells.length > 0) {
        const summary = Object.entries(counts).map(([name, n]) => `${n} ${name}`).join(', ')
        strips.push(element('span', {class: 'strip-name', 'aria-hidden': 'true'}, dash(range)),
          element('div', {class: 'strip', role: 'img', 'aria-label': `${dash(range)}: ${summary}`}, ...cells))
      }
    }
    const box = $('strips')
    box.hidden = strips.length === 0
    const now = strips.map(s => s.textContent + [...s.children].map(c => c.className + c.dataset.state)).join('\n')
    if (box.dataset.told !== now) box.replaceChildren(...strips)
    box.dataset.told = now
    const shown = free.slice(0, 12).map(([low, high]) => low === high ? `${low}` : `${low}\u2013${high}`)
    if (free.length > shown.length) shown.push('\u2026')
    const {total, free: left} = system.summary
    show('free', left === 0 ? `None of ${count(total, 'port')} is free.` : `${left} of ${count(total, 'port')} free: ${shown.join(', ')}`)
  }

  function renderPorts() {
    const {system} = answer
    const text = $('filter').value.trim()
    const matches = matcher(text)
    renderStrips(system, matches)
    const shown = renderRows([...system.ports], matches)
    $('table').hidden = shown === 0
    const where = system.ranges.map(dash).join(', ')
    show('nothing', shown > 0 ? '' : text === '' ? `Nobody has a ${system.network} port in ${where}.` : `No port that is taken matches \u201c${text}\u201d. Escape clears the filter.`)
    show('count', text === '' ? '' : `${shown} of ${count(system.ports.length, 'port')} shown`)
    show('partial', [
      system.complete ? '' : 'Some processes may not be looked into, so a port can have a holder that is not shown. Run as root to see all.',
      system.details ? '' : 'Of processes no more than pid and name is told here, and no advice.',
    ].filter(Boolean).join(' '))
  }

  // The service

  const phases = {
    starting: 'Starting. It takes no connections yet.', draining: 'Draining. New connections go elsewhere.',
    stopping: 'Stopping. New connections go elsewhere.', stopped: 'Stopped.',
  }
  const kindOf = s => s.network.startsWith('unix') ? 'unix' : s.network
  const mono = text => element('span', {class: 'mono'}, text)

  // origin says in words how a socket came to be.
  function origin(s) {
    const others = byProcess(s.in_the_way).map(h => h.pid ? `${called(h)} (${who(h)})` : called(h)).join(', ')
    const requested = mono(s.requested)
    if (!s.open) return [element('b', null, 'closed'), ', without the knowledge of who shows this']
    switch (s.origin) {
      case 'bound':
        return [element('b', null, 'bound'), ...s.requested && s.requested !== s.address ? [', asked for as ', requested] : [', as asked for']]
      case 'fallback':
        return [element('b', null, 'fallback'), ', since ', requested, others ? ` was taken by ${others}` : ' was taken']
      case 'reclaimed':
        return [element('b', null, 'reclaimed'), others ? ` from ${others}, which was stopped` : ' from a process that was stopped']
      case 'activated':
        return [element('b', null, 'activated'), ', handed over by systemd']
      case 'inherited':
        return [element('b', null, 'inherited'), ' from the version before']
    }
    return [element('b', null, 'open'), ', not by berth']
  }

  function socket(s) {
    return element('li', null,
      element('p', {class: 'address mono'}, element('span', {class: 'kind'}, kindOf(s)), s.address,
        s.name ? element('span', {class: 'label'}, s.name) : null),
      element('p', {class: 'origin'}, ...origin(s), ...s.since && s.open ? ['; open for ', past(s.since)] : []),
      s.decisions.length > 0 ? element('ol', {class: 'steps', 'aria-label': `Decisions for ${s.address}`}, ...s.decisions.map(d => element('li', null, d))) : null)
  }

  function span(seconds) {
    if (seconds === 0) return ''
    return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`
  }

  function line(time, level, ...text) {
    return element('li', {'data-level': level}, moment(time), element('span', null, ...text))
  }

  let drawn = '' // what is shown of the service
  function renderService(service) {
    $('service').hidden = service === null
    $('ports-title').textContent = service === null ? 'Ports' : 'Ports of this machine'
    const text = JSON.stringify(service)
    if (service === null || text === drawn) return
    drawn = text
    $('listeners').replaceChildren(...service.sockets.map(socket))
    $('upgrades').hidden = service.upgrades.length === 0
    $('upgrade-list').replaceChildren(...service.upgrades.slice(-8).reverse().map(u => line(u.time, u.error === '' ? 'info' : 'error', element('b', null, u.event),
      u.took_seconds ? ` after ${span(u.took_seconds)}` : '', u.error ? `: ${u.error}` : '')))
  }

  // shortly is what was asked for, without the host where that is the same.
  function shortly({requested, address}) {
    const port = requested.slice(requested.lastIndexOf(':'))
    return requested.slice(0, -port.length) === address.slice(0, address.lastIndexOf(':')) ? port : requested
  }

  function statement({healthy, problems, service, system}) {
    if (service && phases[service.state]) return phases[service.state]
    if (!healthy) return problems.length === 1 ? 'One thing needs attention.' : `${problems.length} things need attention.`
    if (service) {
      const open = service.sockets.filter(s => s.open)
      const moved = open.filter(s => s.origin === 'fallback')
      if (open.length === 1) return `Serving on ${open[0].address}${moved.length > 0 ? `, not on ${shortly(open[0])}` : ''}.`
      return open.length === 0 ? 'Serving.' : `Serving on ${open.length} sockets${moved.length > 0 ? `, ${moved.length} of them elsewhere than asked for` : ''}.`
    }
    const {total, in_use: taken} = system.summary
    if (taken === 0) return `All ${count(total, 'port')} are free.`
    return `${taken} of ${count(total, 'port')} taken, all in order.`
  }

  function render() {
    const {problems, service, system} = answer
    const name = service ? service.name || 'This service' : 'This machine'
    show('subject', name)
    show('verdict', statement(answer))
    const facts = $('facts')
    facts.replaceChildren(...(service === null ? [] : [
      `pid ${service.pid}, up for `, past(service.started),
      service.connections === null ? '' : `, ${count(service.connections, 'open connection')}`,
      service.ready ? '' : ', not ready',
    ]))
    facts.hidden = service === null
    const troubles = $('troubles')
    troubles.hidden = problems.length === 0
    if (troubles.dataset.told !== JSON.stringify(problems)) {
      troubles.dataset.told = JSON.stringify(problems)
      troubles.replaceChildren(...problems.map(text => element('li', null, flag('trouble'), element('span', null, text))))
    }
    document.title = `${problems.length > 0 ? count(problems.length, 'problem') + ', ' : ''}${name}`
    renderService(service)
    renderPorts()
    if (document.activeElement !== $('ranges')) $('ranges').value = system.ranges.join(',')
    $('network').value = system.network
    $('controls').hidden = false
    const taken = new Date(system.taken)
    $('looked').hidden = false
    $('looked').replaceChildren('Looked at ', element('time', {datetime: system.taken}, clock.format(taken)))
    keepTime()
  }

  // Looking

  let looking = false
  let again = false
  async function look() {
    if (looking) {
      again = true
      return
    }
    looking = true
    again = false
    try {
      const query = new URLSearchParams(Object.entries({...asked, status: '200'}).filter(([, value]) => value !== ''))
      const response = await fetch(`${base}api/health/ports?${query}`, {signal: AbortSignal.timeout(patience), cache: 'no-store'})
      const said = await response.json()
      if (said.system) {
        answer = said
        opened ||= Date.parse(said.system.taken)
        show('failure', '')
        refuse('')
        render()
      } else if (response.status === 400) {
        refuse(said.error)
      } else {
        fail(said.error)
      }
    } catch (error) {
      fail(error.name === 'TypeError' ? 'it does not answer' : error.message)
    }
    looking = false
    if (again) look()
  }
  function fail(cause) {
    const before = answer === null ? '' : ` What is shown was true at ${clock.format(new Date(answer.system.taken))}.`
    if (answer === null) show('verdict', 'Nothing is known yet.')
    show('failure', `The service could not be asked: ${cause}.${before}`)
  }
  function refuse(text) {
    show('ranges-error', text)
    if (text === '') $('ranges').removeAttribute('aria-invalid')
    else $('ranges').setAttribute('aria-invalid', 'true')
  }

  let soon = 0
  function lookSoon() { // several events come at once
    clearTimeout(soon)
    soon = setTimeout(look, 50)
  }

  // Events

  const seen = new Set()
  let untold = []
  let telling = 0
  function tell() {
    telling = 0
    const last = untold.at(-1)
    $('announce').textContent = untold.length === 1 ? last : `${untold.length} events, the last: ${last}`
    untold = []
  }
  function happened(message) {
    const event = JSON.parse(message.data)
    lookSoon()
    if (seen.has(event.id)) return
    seen.add(event.id)
    const log = $('log')
    log.prepend(line(event.time, event.level, element('b', null, event.kind), ` ${event.text}${event.error ? `: ${event.error}` : ''}`))
    while (log.children.length > remembered) log.lastChild.remove()
    log.hidden = false
    $('quiet').hidden = true
    if (opened === 0 || Date.parse(event.time) <= opened) return // what is remembered of the past is not read out
    untold.push(event.text)
    telling ||= setTimeout(tell, 1500) // one voice for what comes together
  }

  let stream = null
  let pause = 1000
  let retry = 0
  function link(state, text = state) {
    $('link').dataset.link = state
    if ($('link-text').textContent !== text) $('link-text').textContent = text
  }
  function connect() {
    clearTimeout(retry)
    stream?.close()
    stream = new EventSource(`${base}api/health/events`)
    stream.addEventListener('hello', () => {
      pause = 1000
      link('live')
      look() // what happened meanwhile
    })
    stream.addEventListener('message', happened)
    stream.addEventListener('error', () => {
      link('reconnecting')
      look() // it drains, or is gone
      // A browser tries again by itself where a stream ends, but not where it was refused one.
      if (stream.readyState !== EventSource.CLOSED) return
      link('refused', 'reconnecting')
      clearTimeout(retry)
      retry = setTimeout(connect, pause)
      pause = Math.min(2 * pause, 30_000)
    })
  }
  let hiding = 0
  document.addEventListener('visibilitychange', () => {
    clearTimeout(hiding)
    if (document.hidden) {
      hiding = setTimeout(() => {
        clearTimeout(retry)
        stream.close()
        stream = null
        link('paused')
      }, idle)
    } else if (stream === null) connect()
    else look()
  })

  // Controls

  const themes = ['system', 'light', 'dark']
  function setTheme(theme) {
    if (theme === 'system') delete document.documentElement.dataset.theme
    else document.documentElement.dataset.theme = theme
    $('theme').textContent = `Theme: ${theme}`
    $('theme').dataset.theme = theme
  }
  function storedTheme() {
    try { // storage may be forbidden
      const theme = localStorage.getItem('berth-theme')
      return themes.includes(theme) ? theme : 'system'
    } catch { return 'system' }
  }
  $('theme').hidden = false
  $('theme').addEventListener('click', () => {
    const theme = themes[(themes.indexOf($('theme').dataset.theme) + 1) % themes.length]
    setTheme(theme)
    try { localStorage.setItem('berth-theme', theme) } catch { /* as above */ }
  })
  setTheme(storedTheme())

  $('filter').addEventListener('input', () => answer && renderPorts())
  $('filter').addEventListener('keydown', event => {
    if (event.key !== 'Escape') return
    event.preventDefault()
    $('filter').value = ''
    if (answer) renderPorts()
  })
  // A key without Ctrl or the like counts among the ports alone (WCAG 2.2, 2.1.4): what is said to a computer is keys, too.
  $('ports').addEventListener('keydown', event => {
    if (event.key !== '/' || event.ctrlKey || event.metaKey || event.altKey || event.target.closest('input, select, textarea')) return
    event.preventDefault()
    $('filter').focus()
    $('filter').select()
  })

  function ask() {
    asked = {ranges: $('ranges').value.replace(/\s/g, ''), network: $('network').value}
    const query = new URLSearchParams(Object.entries(asked).filter(([, value]) => value !== ''))
    history.replaceState(null, '', `?${query}`)
    look()
  }
  $('controls').addEventListener('submit', event => {
    event.preventDefault()
    ask()
  })
  $('network').addEventListener('change', ask)

  for (const button of document.querySelectorAll('[data-sort]')) {
    button.addEventListener('click', () => {
      sort = {by: button.dataset.sort, down: sort.by === button.dataset.sort && !sort.down}
      for (const other of document.querySelectorAll('[data-sort]')) other.closest('th').removeAttribute('aria-sort')
      button.closest('th').setAttribute('aria-sort', sort.down ? 'descending' : 'ascending')
      if (answer) renderPorts()
    })
  }

  for (const a of document.querySelectorAll('footer a')) a.href = base + a.getAttribute('href')
  const query = new URLSearchParams(location.search)
  asked = {ranges: query.get('ranges') ?? '', network: query.get('network') ?? ''}
  connect()
  look()
  setInterval(() => {
    keepTime()
    if (!document.hidden) look()
  }, period)
}
