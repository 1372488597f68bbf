//go:build linux

package browsertest_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/berth-go/berth/internal/browsertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const document = `<!doctype html><title>t</title><label>Name <input id="name" autofocus></label><button>Go</button><p id="said"></p>
<script>
document.querySelector('button').addEventListener('click', () => setTimeout(() => {
	document.getElementById('said').textContent = document.getElementById('name').value
	console.error('pressed')
}, 50))
</script>`

func TestBrowser(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, document)
	}))
	defer server.Close()
	b := browsertest.Start(t)
	b.Open(server.URL)
	b.Console() // there is no icon
	b.Press("a" + browsertest.Shift + "b" + "c" + browsertest.Tab + browsertest.Enter)
	b.Await("document.getElementById('said').textContent === arguments[0]", "aBc")
	messages := b.Console()
	require.Len(t, messages, 1)
	require.Contains(t, messages[0].Message, "pressed")
	require.Empty(t, b.Console())

	require.Contains(t, b.Accessible(), browsertest.Node{Role: "textbox", Name: "Name", Focusable: true})
	b.Resize(300, 200)
	b.Prefer("prefers-color-scheme", "dark")
	require.True(t, browsertest.Get[bool](b, "innerWidth === 300 && matchMedia('(prefers-color-scheme: dark)').matches"))
	require.Equal(t, "\x89PNG", string(b.Screenshot(true)[:4]))
}

// Whatever ends the process of a test, its browser goes too.
func TestNothingStays(t *testing.T) {
	if os.Getenv("BERTH_TEST_ROLE") != "" {
		b := browsertest.Start(t)
		fmt.Println("browser", browsertest.PID(b))
		select {}
	}
	browsertest.Need(t)
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, "-test.run=^TestNothingStays$")
	dir, err := os.MkdirTemp("", "berth") // what it cannot tidy up
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	cmd.Env = append(os.Environ(), "BERTH_TEST_ROLE=browser", "TMPDIR="+dir)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	said := bufio.NewReader(stdout)
	line, err := said.ReadString('\n')
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(line), "browser "))
	if err != nil {
		rest, _ := io.ReadAll(said) // as far as it goes
		require.FailNow(t, "no browser", "%s%s", line, rest)
	}
	browser, err := os.FindProcess(pid) // a pidfd
	require.NoError(t, err)
	defer browser.Release()
	require.NoError(t, browser.Signal(syscall.Signal(0)))
	require.NoError(t, cmd.Process.Kill())
	_, _ = io.Copy(io.Discard, stdout)
	_ = cmd.Wait() // it was killed
	require.Eventually(t, func() bool { return browser.Signal(syscall.Signal(0)) != nil }, 30*time.Second, 10*time.Millisecond)
}
