package listener_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/listener"
)

func TestPortFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	require.NoError(t, os.WriteFile(path, []byte("of an earlier run, and longer than what comes now"), 0o600))
	ln := listen(t, &listener.Config{PortFile: path}, "tcp", "127.0.0.1:0")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, ln.Addr().String()+"\n", string(text))
	require.Equal(t, []string{"port"}, filesIn(t, filepath.Dir(path)), "nothing else is left there")
	require.NoError(t, ln.Close())
	require.Empty(t, filesIn(t, filepath.Dir(path)))

	conn, err := (&listener.Config{StateDir: t.TempDir(), PortFile: path}).ListenPacket(context.Background(), "udp", "127.0.0.1:0")
	require.NoError(t, err)
	text, err = os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, conn.LocalAddr().String()+"\n", string(text))
	require.NoError(t, conn.Close())
	require.NoFileExists(t, path)
}

// The path is relative to the working directory of the moment, as everywhere.
func TestPortFileRelative(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	ln := listen(t, &listener.Config{PortFile: "port"}, "tcp", "127.0.0.1:0")
	require.FileExists(t, filepath.Join(dir, "port"))
	t.Chdir(t.TempDir())
	require.NoError(t, ln.Close())
	require.NoFileExists(t, filepath.Join(dir, "port"))
}

// Whoever reads the file at any moment reads an address, and the whole of it.
func TestPortFileAtomic(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	inside := listenPlain(t, "tcp", "127.0.0.1:0")
	state := t.TempDir()
	source := &source{take: func(string, string, string) (net.Listener, error) { return unclosable{inside}, nil }}
	cfg := &listener.Config{StateDir: state, PortFile: path, Sources: []listener.Source{source}}
	want := inside.Addr().String() + "\n"
	stop := make(chan struct{})
	reads := 0
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			text, err := os.ReadFile(path)
			if err != nil {
				if !os.IsNotExist(err) {
					t.Error(err)
				}
				continue
			}
			reads++
			if string(text) != want {
				t.Errorf("read %q", text)
				return
			}
		}
	})
	for range 1000 {
		ln, err := cfg.Listen(context.Background(), "tcp", ":3000")
		require.NoError(t, err)
		require.NoError(t, ln.Close())
	}
	close(stop)
	reader.Wait()
	require.Positive(t, reads)
	require.Empty(t, filesIn(t, filepath.Dir(path)))
}

type unclosable struct{ net.Listener }

func (unclosable) Close() error { return nil }

func TestPortFileUnwritable(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for _, path := range []string{filepath.Join(dir, "not", "there", "port"), filepath.Join(file, "port"), dir} {
		state := t.TempDir()
		cfg := &listener.Config{StateDir: state, PortFile: path}
		port := freePort(t)
		for name, attempt := range map[string]func() error{
			"Listen": func() error { return closed(cfg.Listen(context.Background(), "tcp", "127.0.0.1:"+port)) },
			"ListenAll": func() error {
				_, err := cfg.ListenAll(context.Background(), "tcp", "127.0.0.1:"+port, "127.0.0.1:0")
				return err
			},
		} {
			err := attempt()
			require.ErrorContains(t, err, "port file: ", name)
			require.IsType(t, (*net.OpError)(nil), err)
			require.NotContains(t, err.Error(), "\n")
			var e *listener.Error
			require.ErrorAs(t, err, &e)
			require.Error(t, e.Cause)
			require.Empty(t, filesIn(t, state))
			again, err := net.Listen("tcp", "127.0.0.1:"+port)
			require.NoError(t, err, "%s: the port is free again", name)
			require.NoError(t, again.Close())
		}
	}
	require.Equal(t, []string{"file"}, filesIn(t, dir))
}

// Each instance removes its own file only, also when many came after it: a file system gives the same inode again.
func TestPortFileOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "port")
	for successors := 1; successors <= 3; successors++ {
		var all []*listener.Listener
		for range successors + 1 {
			all = append(all, listen(t, &listener.Config{PortFile: path}, "tcp", "127.0.0.1:0"))
		}
		last := all[successors]
		for _, ln := range all[:successors] {
			require.NoError(t, ln.Close())
			text, err := os.ReadFile(path)
			require.NoError(t, err, "%d successors", successors)
			require.Equal(t, last.Addr().String()+"\n", string(text))
		}
		require.NoError(t, last.Close())
		require.NoFileExists(t, path)
	}

	// It is gone already, or something else stands there.
	ln := listen(t, &listener.Config{PortFile: path}, "tcp", "127.0.0.1:0")
	require.NoError(t, os.Remove(path))
	require.NoError(t, ln.Close())
	ln = listen(t, &listener.Config{PortFile: path}, "tcp", "127.0.0.1:0")
	require.NoError(t, os.Remove(path))
	require.NoError(t, os.WriteFile(path, []byte("mine"), 0o600))
	require.NoError(t, ln.Close())
	require.FileExists(t, path)
}
