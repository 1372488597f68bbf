//go:build linux

package browsertest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-go/berth/internal/testneed"
)

// deadline bounds every wait. It is only reached when something is broken.
const deadline = 30 * time.Second

// A Browser is a Chromium with one window. A method that cannot do what it is asked for fails the test.
type Browser struct {
	t       testing.TB
	client  http.Client
	session string // URL of the WebDriver session
	pid     int    // of Chromium
}

// Need is what [Start] needs, for tests that do something before.
func Need(t testing.TB) {
	t.Helper()
	for name, of := range map[string]string{"chromium": "chromium", "chromedriver": "chromium-driver"} {
		_, err := exec.LookPath(name)
		testneed.That(t, err == nil, name+" (Debian's package "+of+")")
	}
}

// For is the same browser for another test, which fails in the place of the one that started it.
func (b *Browser) For(t testing.TB) *Browser {
	other := *b
	other.t = t
	return &other
}

// Start starts a browser with a new profile. When the test ends, failed or not, it is gone with all its processes; should the
// process of the test be killed, it goes too.
//
// Where the test lacks what it needs, see [testneed.That].
func Start(t testing.TB) *Browser {
	t.Helper()
	Need(t)
	dir, err := os.MkdirTemp("", "berth") // sockets are made in it, so its name is short
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	b := &Browser{t: t, client: http.Client{Transport: &http.Transport{}, Timeout: 2 * deadline}}
	t.Cleanup(b.client.CloseIdleConnections)
	server := startDriver(t, dir)

	// Root may not have Chromium's sandbox, and containers keep /dev/shm too small for it.
	args := []string{
		"--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-quic", "--no-first-run",
		"--disable-background-networking", "--disable-breakpad", "--disable-component-update", "--disable-sync", "--disable-extensions",
		"--no-proxy-server", "--hide-scrollbars", "--user-data-dir=" + filepath.Join(dir, "profile"),
	}
	always := map[string]any{
		"goog:chromeOptions":      map[string]any{"args": args},
		"goog:loggingPrefs":       map[string]any{"browser": "ALL"},
		"timeouts":                map[string]any{"script": deadline.Milliseconds(), "pageLoad": deadline.Milliseconds()},
		"unhandledPromptBehavior": "ignore", // an alert stays, and fails what follows
	}
	var made struct {
		SessionID    string
		Capabilities struct {
			PID int `json:"goog:processID"`
		}
	}
	b.session = server + "/session"
	b.call("", map[string]any{"capabilities": map[string]any{"alwaysMatch": always}}, &made)
	b.session += "/" + made.SessionID
	b.pid = made.Capabilities.PID
	// Chromium ends in order, so that nobody writes into the profile while it is removed.
	t.Cleanup(func() {
		request, err := http.NewRequest(http.MethodDelete, b.session, nil)
		must(t, err)
		if response, err := b.client.Do(request); err == nil {
			response.Body.Close()
		}
	})
	return b
}

// startDriver starts chromedriver, and gives its URL.
func startDriver(t testing.TB, dir string) string {
	t.Helper()
	// It leaves its Chromium behind, whatever ends it. The shell ends the whole group when its stdin is closed: by the test, or
	// by the kernel when the process of the test is no more.
	cmd := exec.Command("sh", "-c", "chromedriver --port=0 & read -r _; kill -KILL 0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "LANG=C.UTF-8"} // and no proxy
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	watchdog := time.AfterFunc(deadline, func() { stdin.Close() })
	said := bufio.NewReader(stdout)
	drained := make(chan struct{})
	t.Cleanup(func() {
		stdin.Close()
		<-drained
		_ = cmd.Wait() // it was killed
	})
	var lines strings.Builder
	for {
		line, err := said.ReadString('\n')
		lines.WriteString(line)
		_, port, ok := strings.Cut(strings.TrimSuffix(line, ".\n"), "started successfully on port ")
		if !ok && err == nil {
			continue
		}
		watchdog.Stop()
		go drain(said, drained)
		if !ok {
			t.Fatalf("chromedriver does not start: %v\n%s", err, lines.String())
		}
		return "http://127.0.0.1:" + port
	}
}

func drain(r io.Reader, done chan<- struct{}) {
	_, _ = io.Copy(io.Discard, r) // until its writers have ended
	close(done)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// call posts a command of WebDriver, and reads the value that it answers unless into is nil.
func (b *Browser) call(command string, parameters, into any) {
	b.t.Helper()
	body, err := json.Marshal(parameters)
	must(b.t, err)
	response, err := b.client.Post(b.session+command, "application/json", bytes.NewReader(body))
	must(b.t, err)
	defer response.Body.Close()
	var answer struct{ Value json.RawMessage }
	must(b.t, json.NewDecoder(response.Body).Decode(&answer))
	if response.StatusCode != http.StatusOK {
		var failure struct{ Error, Message string }
		_ = json.Unmarshal(answer.Value, &failure) // what is missing is empty
		b.t.Fatalf("the browser: %s: %s", failure.Error, failure.Message)
	}
	if into != nil {
		must(b.t, json.Unmarshal(answer.Value, into))
	}
}

// Open goes to a page, and waits until it is loaded.
func (b *Browser) Open(url string) {
	b.t.Helper()
	b.call("/url", map[string]any{"url": url}, nil)
}

// Reload loads the page again, and waits until it is loaded.
func (b *Browser) Reload() {
	b.t.Helper()
	b.call("/refresh", struct{}{}, nil)
}

// Run runs the body of a JavaScript function in the page. What it returns is read as JSON into the value that into points to,
// unless that is nil. The body finds args in arguments.
func (b *Browser) Run(into any, body string, args ...any) {
	b.t.Helper()
	b.call("/execute/sync", script(body, args), into)
}

// Get is the value of a JavaScript expression. It finds args in arguments.
func Get[T any](b *Browser, expression string, args ...any) T {
	b.t.Helper()
	var value T
	b.Run(&value, "return "+expression, args...)
	return value
}

// Await waits until a JavaScript expression is true. It is looked at whenever the document changes.
func (b *Browser) Await(expression string, args ...any) {
	b.t.Helper()
	body := `const done = arguments[arguments.length - 1]
const holds = () => { try { return ` + expression + ` } catch (e) { return false } }
if (holds()) return done(true)
const observer = new MutationObserver(() => { if (holds()) finish(true) })
const timer = setTimeout(() => finish(false), ` + fmt.Sprint(deadline.Milliseconds()-1000) + `)
function finish(ok) { observer.disconnect(); clearTimeout(timer); done(ok) }
observer.observe(document, {attributes: true, characterData: true, childList: true, subtree: true})`
	var ok bool
	b.call("/execute/async", script(body, args), &ok)
	if !ok {
		text := Get[string](b, "document.body.innerText")
		b.t.Fatalf("never true: %s %v\nThe page says:\n%s", expression, args, text)
	}
}

func script(body string, args []any) map[string]any {
	return map[string]any{"script": body, "args": append([]any{}, args...)} // null is no list of arguments
}

// Keys that have no character of their own, for [Browser.Press].
const (
	Tab    = "\ue004"
	Enter  = "\ue007"
	Shift  = "\ue008" // it stays down for the key after it
	Escape = "\ue00c"
	Space  = "\ue00d"
	Down   = "\ue015"
)

// Press presses keys of the keyboard, each of which is a character or one of the constants.
func (b *Browser) Press(keys string) {
	b.t.Helper()
	type action struct {
		Type  string `json:"type"`
		Value string `json:"value"`
	}
	var actions []action
	shifted := false
	for _, r := range keys {
		key := string(r)
		actions = append(actions, action{"keyDown", key})
		if key == Shift {
			shifted = true
			continue
		}
		actions = append(actions, action{"keyUp", key})
		if shifted {
			actions = append(actions, action{"keyUp", Shift})
			shifted = false
		}
	}
	b.call("/actions", map[string]any{"actions": []any{map[string]any{"type": "key", "id": "keyboard", "actions": actions}}}, nil)
}

// CDP calls a method of Chromium's own protocol, and reads the answer unless into is nil.
func (b *Browser) CDP(into any, method string, parameters map[string]any) {
	b.t.Helper()
	if parameters == nil {
		parameters = map[string]any{}
	}
	b.call("/goog/cdp/execute", map[string]any{"cmd": method, "params": parameters}, into)
}

// Prefer sets what media queries find, such as "prefers-color-scheme", "dark"; without any it is what it was at the start.
func (b *Browser) Prefer(names ...string) {
	b.t.Helper()
	features := []any{}
	for ; len(names) > 1; names = names[2:] {
		features = append(features, map[string]any{"name": names[0], "value": names[1]})
	}
	b.CDP(nil, "Emulation.setEmulatedMedia", map[string]any{"features": features})
}

// Resize makes the window so large, in CSS pixels.
func (b *Browser) Resize(width, height int) {
	b.t.Helper()
	b.CDP(nil, "Emulation.setDeviceMetricsOverride", map[string]any{
		"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false,
	})
}

// Screenshot is a PNG of the page: of what the window shows, or of its whole height.
func (b *Browser) Screenshot(whole bool) []byte {
	b.t.Helper()
	var shot struct{ Data []byte }
	b.CDP(&shot, "Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": whole})
	return shot.Data
}

// A Message is a line of the console: of scripts, and of Chromium about violated policies, failed requests and the like.
type Message struct{ Level, Source, Message string }

// Console gives the messages since it was called last.
func (b *Browser) Console() []Message {
	b.t.Helper()
	var messages []Message
	b.call("/se/log", map[string]any{"type": "browser"}, &messages)
	return messages
}

// A Node is what a screen reader is told of.
type Node struct {
	Role, Name string
	Focusable  bool
}

// Accessible gives the page as screen readers see it, in order.
func (b *Browser) Accessible() []Node {
	b.t.Helper()
	type value struct{ Value any }
	var tree struct {
		Nodes []struct {
			Ignored    bool
			Role, Name value
			Properties []struct {
				Name  string
				Value value
			}
		}
	}
	b.CDP(&tree, "Accessibility.getFullAXTree", nil)
	var nodes []Node
	for _, n := range tree.Nodes {
		if n.Ignored {
			continue
		}
		node := Node{}
		node.Role, _ = n.Role.Value.(string)
		node.Name, _ = n.Name.Value.(string)
		for _, p := range n.Properties {
			if p.Name == "focusable" {
				node.Focusable, _ = p.Value.Value.(bool)
			}
		}
		nodes = append(nodes, node)
	}
	return nodes
}
