package page_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/browsertest"
	"github.com/berth-go/berth/listener"
)

// The page in a real browser, about real processes.
func TestPage(t *testing.T) {
	b := browsertest.Start(t)
	for _, test := range []struct {
		name string
		do   func(*testing.T, *browsertest.Browser)
	}{
		{"states", testStates},
		{"live", testLive},
		{"restart", testRestart},
		{"machine", testMachine},
		{"keyboard", testKeyboard},
		{"themes", testThemes},
		{"phone", testPhone},
		{"ranges", testRanges},
		{"without JavaScript", testWithoutScript},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := b.For(t)
			b.Prefer()
			b.Resize(1280, 900)
			defer b.Open("about:blank") // before its service ends, of which Chromium would tell the next test
			test.do(t, b)
			quiet(t, b)
		})
	}
}

// quiet wants no word in the console: no error, no violation of the policy.
func quiet(t *testing.T, b *browsertest.Browser) {
	t.Helper()
	require.Empty(t, b.Console())
}

// open shows the page, and waits until it is live.
func open(b *browsertest.Browser, monitor *process, query string) {
	b.Open("http://" + monitor.at + "/ops/" + query)
	b.Await("document.getElementById('link').dataset.link === 'live' && !document.getElementById('controls').hidden")
}

// text of an element, as it is shown.
func text(b *browsertest.Browser, selector string) string {
	return browsertest.Get[string](b, "document.querySelector(arguments[0])?.innerText ?? ''", selector)
}

func rowOf(port string) string { return "#port-" + port }

// awaitRow waits until the row of a port says something.
func awaitRow(b *browsertest.Browser, port, says string) {
	b.Await("document.querySelector(arguments[0])?.innerText.includes(arguments[1])", rowOf(port), says)
}

// ports are the rows in the order in which they are shown.
func ports(b *browsertest.Browser) []string {
	return browsertest.Get[[]string](b, "[...document.querySelectorAll('#rows .port')].map(e => e.textContent)")
}

// A harbour is a machine's ports with a process in each state, and a service that shows them.
type harbour struct {
	quay
	monitor, stranger, tracked, reserved *process
}

const hostile = "<i id=hostile>"

func newHarbour(t *testing.T) harbour {
	t.Helper()
	q, dir := newQuay(t), t.TempDir()
	h := harbour{quay: q}
	evil := filepath.Join(t.TempDir(), "<img src=x onerror=alert(1)>")
	require.NoError(t, os.Mkdir(evil, 0o700))
	h.stranger = play(t, role{Do: "plain", Address: q.address(0), Command: hostile}, func(cmd *exec.Cmd) {
		cmd.Args = append(cmd.Args, "<script>alert(1)</script>")
		cmd.Dir = evil
	})
	h.tracked = play(t, role{Do: "service", Address: q.address(1), Name: "search <b>", StateDir: dir})
	h.reserved = play(t, role{Do: "bound", Address: q.address(2), Command: "deploy"})
	play(t, role{Do: "service", Address: q.address(3), Name: "crashed", StateDir: dir}).kill(t)
	h.monitor = play(t, role{
		Do: "monitor", Address: q.address(0), Fallback: q.port(4), Name: "checkout", StateDir: dir, Ranges: q.ranges(),
	})
	require.Equal(t, q.address(4), h.monitor.at)
	return h
}

func testStates(t *testing.T, b *browsertest.Browser) {
	h := newHarbour(t)
	open(b, h.monitor, "")

	// The service first.
	require.Equal(t, "checkout", text(b, "h1"))
	require.Equal(t, "Serving on "+h.address(4)+", not on :"+h.port(0)+".", text(b, "#verdict"))
	require.Contains(t, text(b, "#facts"), "pid "+strconv.Itoa(h.monitor.pid))
	listeners := text(b, "#listeners")
	for _, says := range []string{h.address(4), "fallback, since " + h.address(0) + " was taken by " + hostile + " (pid " + strconv.Itoa(h.stranger.pid)} {
		require.Contains(t, listeners, says)
	}
	require.NotEmpty(t, text(b, "#listeners .steps"), "decisions")
	b.Await("document.getElementById('log').innerText.includes('fallback')")

	// Then the machine.
	for i, says := range [][]string{
		{"in use", hostile, "pid " + strconv.Itoa(h.stranger.pid), strconv.Itoa(h.stranger.pid)},
		{"healthy", "search <b>", "pid " + strconv.Itoa(h.tracked.pid)},
		{"reserved", "deploy", "pid " + strconv.Itoa(h.reserved.pid)},
		{"stale record", "is stale"},
		{"healthy", "this service", "checkout"},
	} {
		row := text(b, rowOf(h.port(i)))
		for _, s := range says {
			require.Contains(t, row, s, "port %s", h.port(i))
		}
	}
	require.Len(t, ports(b), 5)
	require.Equal(t, fmt.Sprintf("8 of 12 ports free: %s, %s\u2013%s", h.port(3), h.port(5), h.port(11)), text(b, "#free"))
	require.Equal(t, []string{"in use", "healthy", "reserved", "trouble", "healthy", "available"},
		browsertest.Get[[]string](b, "[...document.querySelectorAll('.strip .flag')].slice(0, 6).map(e => e.dataset.state)"))
	require.NotEmpty(t, text(b, rowOf(h.port(0))+" .advice"), "what to do")

	// What a process calls itself is text.
	b.Run(nil, "for (const d of document.querySelectorAll('details')) d.open = true")
	details := text(b, rowOf(h.port(0)))
	require.Contains(t, details, "<script>alert(1)</script>")
	require.Contains(t, details, "<img src=x onerror=alert(1)>")
	require.Equal(t, 0, browsertest.Get[int](b, "document.querySelectorAll('#hostile, img, main script').length"))
}

func testLive(t *testing.T, b *browsertest.Browser) {
	h := newHarbour(t)
	open(b, h.monitor, "")
	// A reader has opened something, and stays where he is.
	const place = "document.activeElement === document.querySelector(arguments[0] + ' summary')"
	summary := rowOf(h.port(0))
	b.Run(nil, "document.querySelector(arguments[0] + ' summary').focus()", summary)
	b.Press(browsertest.Enter)
	require.True(t, browsertest.Get[bool](b, place+" && document.activeElement.parentElement.open", summary))

	guest := play(t, role{Do: "plain", Address: h.address(7), Command: "guest"})
	awaitRow(b, h.port(7), "in use")
	awaitRow(b, h.port(7), "guest")
	b.Await("[...document.querySelectorAll('#log li')].some(e => e.innerText.includes('taken') && e.innerText.includes(arguments[0]))", h.port(7))
	b.Await("document.getElementById('announce').textContent.includes(arguments[0])", h.port(7)) // to screen readers
	guest.end(t)
	b.Await("!document.querySelector(arguments[0])", rowOf(h.port(7)))
	b.Await("[...document.querySelectorAll('#log li')].some(e => e.innerText.includes('freed') && e.innerText.includes(arguments[0]))", h.port(7))

	// Another process comes to the port that he looks at.
	second := play(t, role{Do: "plain", Address: "127.0.0.2:" + h.port(0), Command: "second"})
	awaitRow(b, h.port(0), "pid "+strconv.Itoa(second.pid))
	require.True(t, browsertest.Get[bool](b, place+" && document.activeElement.parentElement.open", summary))

	h.tracked.kill(t)
	awaitRow(b, h.port(1), "stale record")
	b.Await("[...document.querySelectorAll('#log li')].some(e => /freed|holder gone/.test(e.innerText) && e.innerText.includes(arguments[0]))", h.port(1))
	require.True(t, browsertest.Get[bool](b, place+" && document.activeElement.parentElement.open", summary))
}

// The next version is another process at the same address.
func testRestart(t *testing.T, b *browsertest.Browser) {
	q, dir := newQuay(t), t.TempDir()
	version := role{Do: "monitor", Address: q.address(0), Name: "checkout", StateDir: dir, Ranges: q.ranges()}
	first := play(t, version)
	open(b, first, "")
	require.Contains(t, text(b, "#facts"), "pid "+strconv.Itoa(first.pid))
	require.Regexp(t, `[1-9] open connection`, text(b, "#facts"))
	first.tell(t, occasion{Event: "upgrade failed", Took: 1500 * time.Millisecond, Error: "exit status 7"})
	b.Await("document.getElementById('upgrade-list').innerText.includes('upgrade failed after 1.5 s: exit status 7')")
	require.Contains(t, text(b, "#log [data-level=error]"), "upgrade failed")
	quiet(t, b)

	first.tell(t, occasion{Event: "draining"})
	b.Await("document.getElementById('verdict').innerText.startsWith('Draining.')")
	b.Await("document.getElementById('link').innerText === 'reconnecting'")
	b.Await("document.getElementById('link').dataset.link === 'refused'") // then a browser does not ask again by itself
	first.end(t)
	b.Await("document.getElementById('failure').innerText.includes('it does not answer')")

	second := play(t, version)
	require.Equal(t, first.at, second.at)
	b.Await("document.getElementById('link').innerText === 'live'")
	b.Await("document.getElementById('facts').innerText.includes(arguments[0])", "pid "+strconv.Itoa(second.pid))
	b.Await("document.getElementById('failure').hidden")
	require.Equal(t, "Serving on "+second.at+".", text(b, "#verdict"))
	b.Await("document.getElementById('log').innerText.includes('draining')", "what was seen of the first stays")
	guest := play(t, role{Do: "plain", Address: q.address(7)})
	awaitRow(b, q.port(7), "in use")
	guest.end(t)
	// Chromium itself says that nobody was there.
	for _, m := range b.Console() {
		require.Regexp(t, "ERR_CONNECTION_(REFUSED|RESET)|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE_CHUNKED_ENCODING|503", m.Message)
	}
}

// What a machine without a service has to say first is what is wrong.
func testMachine(t *testing.T, b *browsertest.Browser) {
	q, dir := newQuay(t), t.TempDir()
	monitor := play(t, role{Do: "monitor", Address: q.address(0), StateDir: dir, Ranges: q.port(1) + "-" + q.port(4), Machine: true})
	open(b, monitor, "")
	require.Equal(t, "This machine", text(b, "h1"))
	require.Equal(t, "1 of 5 ports taken, all in order.", text(b, "#verdict"))
	require.Contains(t, text(b, rowOf(q.port(0))), "this page")
	require.Equal(t, []string{"Ports", "Events"}, headings(b, 2))
	service := play(t, role{Do: "service", Address: q.address(2), Name: "search", StateDir: dir})
	b.Await("document.getElementById('verdict').innerText === '2 of 5 ports taken, all in order.'")
	service.kill(t)
	b.Await("document.getElementById('verdict').innerText === 'One thing needs attention.'")
	require.Contains(t, text(b, "#troubles"), q.port(2))
	require.Equal(t, "1 problem, This machine", browsertest.Get[string](b, "document.title"))

	cfg := listener.Config{Name: "batch", StateDir: dir}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	reservation, err := cfg.Reserve(ctx, "tcp", q.address(3))
	require.NoError(t, err)
	defer reservation.Close()
	awaitRow(b, q.port(3), "batch")
	awaitRow(b, q.port(3), "until ")
}

// focused is the element that has the keyboard: its id, else what it says.
func focused(b *browsertest.Browser) string {
	return browsertest.Get[string](b, `(e => e === document.body ? '' : e.id || (e.closest('[id^=port-]')?.id ?? '') + e.tagName + (e.dataset.sort ?? ''))(document.activeElement)`)
}

func testKeyboard(t *testing.T, b *browsertest.Browser) {
	h := newHarbour(t)
	open(b, h.monitor, "")

	// Every control can be reached in the order of the page, and is seen to have the keyboard.
	row := func(i int) string { return "port-" + h.port(i) + "SUMMARY" }
	var way []string
	for range 40 {
		b.Press(browsertest.Tab)
		at := focused(b)
		if at == "" {
			break
		}
		way = append(way, at)
		outlined := browsertest.Get[bool](b, "(s => s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2)(getComputedStyle(document.activeElement))")
		require.True(t, outlined, at)
	}
	want := []string{"A", "theme", "filter", "ranges", "network", "BUTTON", "BUTTONport", "BUTTONstate", "BUTTONholder", "BUTTONsince"}
	require.Equal(t, want, way[:len(want)])
	for _, summary := range []string{row(0), row(1), row(2), row(4)} {
		require.Contains(t, way, summary)
	}
	require.Equal(t, "A", way[len(way)-1], "the link at the end")

	// The first of them skips the rest.
	b.Press("/" + browsertest.Tab)
	require.Equal(t, "A", focused(b), "a single key does nothing outside of the ports")
	const hint = "getComputedStyle(document.querySelector('kbd')).visibility"
	require.Equal(t, "hidden", browsertest.Get[string](b, hint))
	b.Press(browsertest.Enter)
	require.Equal(t, "ports", focused(b))
	require.Equal(t, "visible", browsertest.Get[string](b, hint))

	// The filter
	b.Press("/")
	require.Equal(t, "filter", focused(b))
	b.Press("deploy")
	require.Equal(t, []string{h.port(2)}, ports(b))
	require.Equal(t, "1 of 5 ports shown", text(b, "#count"))
	b.Press(browsertest.Escape)
	require.Len(t, ports(b), 5)
	for _, filter := range []struct {
		typed string
		want  []int
	}{
		{"healthy", []int{1, 4}}, {"HEALTHY " + h.port(4), []int{4}}, {"in use", []int{0}}, {"stale", []int{3}}, {h.port(0) + "-" + h.port(2), []int{0, 1, 2}},
		{strconv.Itoa(h.reserved.pid), []int{2}}, {"this service", []int{4}},
	} {
		b.Press(filter.typed)
		want := []string{}
		for _, i := range filter.want {
			want = append(want, h.port(i))
		}
		require.Equal(t, want, ports(b), filter.typed)
		b.Press(browsertest.Escape)
	}
	b.Press("nothing/")
	require.Contains(t, text(b, "#nothing"), "nothing/")
	require.False(t, browsertest.Get[bool](b, "document.getElementById('table').checkVisibility()"))
	b.Press(browsertest.Escape)

	// The order
	tabTo(t, b, "BUTTONstate")
	b.Press(browsertest.Enter)
	byState := []string{h.port(3), h.port(0), h.port(2), h.port(1), h.port(4)}
	require.Equal(t, byState, ports(b))
	const sorted = "[...document.querySelectorAll('th')].map(e => e.getAttribute('aria-sort') ?? '').join()"
	require.Equal(t, ",ascending,,,", browsertest.Get[string](b, sorted))
	b.Press(browsertest.Space)
	require.Equal(t, ",descending,,,", browsertest.Get[string](b, sorted))
	require.Equal(t, []string{h.port(1), h.port(4), h.port(2), h.port(0), h.port(3)}, ports(b), "among those alike the port goes up")
	ln, err := net.Listen("tcp", h.address(6)) // by the oldest of the processes
	require.NoError(t, err)
	defer ln.Close()
	awaitRow(b, h.port(6), "in use")
	tabTo(t, b, "BUTTONsince")
	b.Press(browsertest.Enter)
	require.Equal(t, []string{h.port(6), h.port(3)}, ports(b)[4:], "and those of nobody last")
	b.Press(browsertest.Enter)
	require.Equal(t, []string{h.port(3), h.port(6)}, ports(b)[:2])

	// The theme is remembered.
	tabTo(t, b, "theme")
	for _, theme := range []string{"light", "dark"} {
		b.Press(browsertest.Space)
		require.Equal(t, "Theme: "+theme, text(b, "#theme"))
		require.Equal(t, theme, browsertest.Get[string](b, "getComputedStyle(document.documentElement).colorScheme"))
	}
	b.Reload()
	require.Equal(t, "Theme: dark", text(b, "#theme"))
	tabTo(t, b, "theme")
	b.Press(browsertest.Enter)
	require.Equal(t, "light dark", browsertest.Get[string](b, "getComputedStyle(document.documentElement).colorScheme"))
	b.Await("document.getElementById('link').dataset.link === 'live'")
}

// tabTo goes on by the keyboard until it is there.
func tabTo(t *testing.T, b *browsertest.Browser, to string) {
	t.Helper()
	for range 60 {
		if focused(b) == to {
			return
		}
		b.Press(browsertest.Tab)
	}
	require.FailNow(t, "the keyboard does not get there", to)
}

// faint gives what is too hard to read or to see: texts with a contrast below 4.5, or 3 where they are large, and
// borders of controls and flags below 3 (WCAG 2.2, 1.4.3 and 1.4.11).
const faint = `
const channels = color => {
	const c = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
	c.fillStyle = color
	c.fillRect(0, 0, 1, 1)
	const [r, g, b, a] = c.getImageData(0, 0, 1, 1).data
	return {rgb: [r, g, b], a: a / 255}
}
const luminance = rgb => rgb.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
	.reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
const ratio = (a, b) => ([a, b] = [luminance(a), luminance(b)].sort((x, y) => y - x), (a + 0.05) / (b + 0.05))
const ground = e => {
	for (; e; e = e.parentElement) {
		const c = channels(getComputedStyle(e).backgroundColor)
		if (c.a === 1) return c.rgb
		if (c.a > 0) throw new Error('half transparent: ' + e.outerHTML)
	}
	return [255, 255, 255]
}
const found = []
const weigh = (e, color, least, what) => {
	const r = ratio(channels(color).rgb, ground(e))
	counted++
	if (r < least) found.push(what + ': ' + r.toFixed(2))
}
let counted = 0
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
while (texts.nextNode()) {
	const e = texts.currentNode.parentElement
	if (!texts.currentNode.data.trim() || !e.checkVisibility({visibilityProperty: true}) || e.closest('script, style, option')) continue
	const s = getComputedStyle(e)
	const size = parseFloat(s.fontSize)
	weigh(e, s.color, size >= 24 || size >= 18.66 && s.fontWeight >= 700 ? 3 : 4.5, 'text ' + texts.currentNode.data.trim())
}
for (const e of document.querySelectorAll('input')) weigh(e, getComputedStyle(e, '::placeholder').color, 4.5, 'placeholder of ' + e.id)
for (const e of document.querySelectorAll('input, select, button:not(th button), .flag, .lamp')) {
	if (e.checkVisibility()) weigh(e.parentElement, getComputedStyle(e).borderTopColor, 3, 'border of ' + (e.id || e.dataset.state || e.className || e.innerText))
}
return {found, counted}`

func testThemes(t *testing.T, b *browsertest.Browser) {
	h := newHarbour(t)
	open(b, h.monitor, "")
	b.Await("document.querySelectorAll('#log li').length > 0")
	b.Run(nil, "for (const d of document.querySelectorAll('details')) d.open = true")
	grounds := map[string]bool{}
	for _, theme := range []string{"light", "dark"} {
		b.Prefer("prefers-color-scheme", theme)
		grounds[browsertest.Get[string](b, "getComputedStyle(document.body).backgroundColor")] = true
		var contrast struct {
			Found   []string
			Counted int
		}
		b.Run(&contrast, faint)
		require.Empty(t, contrast.Found, theme)
		require.Greater(t, contrast.Counted, 80)
	}
	require.Len(t, grounds, 2)

	// Who wants no motion gets none.
	b.Prefer("prefers-reduced-motion", "reduce")
	play(t, role{Do: "plain", Address: h.address(8)})
	awaitRow(b, h.port(8), "in use")
	require.Equal(t, 0, browsertest.Get[int](b, "document.getAnimations().length"))

	// What screen readers are told
	nodes := b.Accessible()
	roles := map[string][]string{}
	for _, n := range nodes {
		roles[n.Role] = append(roles[n.Role], n.Name)
		if n.Focusable && n.Role != "RootWebArea" {
			require.NotEmpty(t, n.Name, "a %s without a name", n.Role)
		}
	}
	require.Equal(t, []string{"Filter", "Ranges", "Network"}, slices.Concat(roles["searchbox"], roles["textbox"], roles["combobox"]))
	for _, landmark := range []string{"banner", "main", "search", "contentinfo"} {
		require.Len(t, roles[landmark], 1, landmark)
	}
	require.Equal(t, []string{"checkout"}, headings(b, 1))
	require.Equal(t, []string{"This service", "Ports of this machine", "Events"}, headings(b, 2))
	require.Equal(t, []string{"Ports that are not free, who holds them, and what to do"}, roles["table"])
	require.Len(t, roles["columnheader"], 5)
	require.Contains(t, roles["image"], fmt.Sprintf("%s\u2013%s: 2 in use, 2 healthy, 1 reserved, 1 stale record, 6 free", h.port(0), h.port(11)))
	require.Equal(t, "en", browsertest.Get[string](b, "document.documentElement.lang"))
}

func headings(b *browsertest.Browser, level int) []string {
	return browsertest.Get[[]string](b, "[...document.querySelectorAll('h' + arguments[0])].filter(e => e.checkVisibility()).map(e => e.innerText)", level)
}

func testPhone(t *testing.T, b *browsertest.Browser) {
	h := newHarbour(t)
	for _, width := range []int{390, 320} {
		b.Resize(width, 844)
		open(b, h.monitor, "")
		b.Await("document.querySelectorAll('#rows tr').length === 5")
		b.Run(nil, "for (const d of document.querySelectorAll('details')) d.open = true")
		require.Equal(t, width, browsertest.Get[int](b, "document.documentElement.scrollWidth"), "it scrolls sideways")
		beyond := browsertest.Get[[]string](b, `[...document.querySelectorAll('body *')].filter(e => {
			const box = e.getBoundingClientRect()
			return box.width > 1 && !e.matches('.skip, .unseen') && (box.right > innerWidth || box.left < 0)
		}).map(e => e.outerHTML.slice(0, 80))`)
		require.Empty(t, beyond, "cut off")
		// A finger finds it (WCAG 2.2, 2.5.8).
		small := browsertest.Get[[]string](b, `[...document.querySelectorAll('button, input, select, summary')].filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 24).map(e => e.outerHTML)`)
		require.Empty(t, small)
		// Cards are a table still, for those who do not see them.
		roles := map[string]int{}
		for _, n := range b.Accessible() {
			roles[n.Role]++
		}
		require.Equal(t, 1, roles["table"])
		require.Equal(t, 6, roles["row"])
		require.Equal(t, 22, roles["cell"]+roles["gridcell"], "of 25; three have nothing to say")
		require.Equal(t, 5, roles["columnheader"])
	}
}

func testRanges(t *testing.T, b *browsertest.Browser) {
	h := newHarbour(t)
	open(b, h.monitor, "?ranges="+h.port(0)+"-"+h.port(1))
	require.Equal(t, []string{h.port(0), h.port(1)}, ports(b))

	b.Run(nil, "document.getElementById('ranges').select(); document.getElementById('ranges').focus()")
	b.Press(h.port(9) + "-" + h.port(10) + browsertest.Enter)
	b.Await("document.getElementById('nothing').innerText === arguments[0]", fmt.Sprintf("Nobody has a tcp port in %s\u2013%s.", h.port(9), h.port(10)))
	require.Contains(t, browsertest.Get[string](b, "location.search"), "ranges="+h.port(9)+"-"+h.port(10))
	quiet(t, b)

	b.Run(nil, "document.getElementById('ranges').select()")
	b.Press("abc" + browsertest.Enter)
	b.Await("!document.getElementById('ranges-error').hidden")
	require.Contains(t, text(b, "#ranges-error"), "abc")
	require.Equal(t, "true", browsertest.Get[string](b, "document.getElementById('ranges').getAttribute('aria-invalid')"))
	for _, m := range b.Console() {
		require.Contains(t, m.Message, "400") // Chromium tells of every answer that is no success
	}

	b.Run(nil, "document.getElementById('ranges').select()")
	b.Press(h.port(2) + browsertest.Enter)
	awaitRow(b, h.port(2), "reserved")
	require.Empty(t, text(b, "#ranges-error"))
	tabTo(t, b, "network")
	b.Press(browsertest.Down)
	b.Await("document.getElementById('nothing').innerText === arguments[0]", "Nobody has a udp port in "+h.port(2)+".")
}

func testWithoutScript(t *testing.T, b *browsertest.Browser) {
	h := newHarbour(t)
	b.CDP(nil, "Emulation.setScriptExecutionDisabled", map[string]any{"value": true})
	defer b.CDP(nil, "Emulation.setScriptExecutionDisabled", map[string]any{"value": false})
	b.Open("http://" + h.monitor.at + "/ops/")
	var names []string
	for _, n := range b.Accessible() {
		if n.Focusable {
			names = append(names, n.Name)
		}
	}
	require.Contains(t, names, "the ports of this machine")
	require.NotContains(t, strings.Join(names, "\n"), "Filter", "a control that does nothing")
}
