package page_test

import (
	"bytes"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/berth-go/berth/internal/browsertest"
)

// TestScreenshots draws the pictures of the documentation, where BERTH_SCREENSHOTS names a directory for them. It wants the ports that
// everybody knows, and looks better with Debian's fonts-inter and fonts-jetbrains-mono.
func TestScreenshots(t *testing.T) {
	into := os.Getenv("BERTH_SCREENSHOTS")
	if into == "" {
		t.Skip("BERTH_SCREENSHOTS names no directory")
	}
	dir, err := os.MkdirTemp("", "berth") // it is to be seen in them
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	play(t, role{Do: "plain", Address: "127.0.0.1:3000", Command: "node"})
	play(t, role{Do: "service", Address: "127.0.0.1:3004", Name: "search", Command: "search", StateDir: dir})
	play(t, role{Do: "bound", Address: "127.0.0.1:8000", Command: "deploy"})
	play(t, role{Do: "plain", Address: "127.0.0.1:9000", Command: "prometheus"})
	crashed := play(t, role{Do: "service", Address: "127.0.0.1:8003", Name: "mailer", Command: "mailer", StateDir: dir})
	const ranges = "3000-3010,8000-8010,9000-9010"
	shop := role{
		Do: "monitor", Address: "127.0.0.1:3000", Fallback: "3001", Name: "checkout", Command: "checkout", StateDir: dir, Ranges: ranges,
	}
	monitor := play(t, shop)
	machine := play(t, role{Do: "monitor", Address: "127.0.0.1:9008", Command: "berth", StateDir: dir, Ranges: ranges, Machine: true})

	b := browsertest.Start(t)
	b.Resize(1200, 1250)
	b.Prefer("prefers-color-scheme", "light")
	open(b, monitor, "")
	for _, o := range []occasion{
		{Event: "ready"}, {Event: "upgrading"}, {Event: "upgrade failed", Took: 320 * time.Millisecond, Error: "the new version exits before it is ready: exit status 7"},
	} {
		monitor.tell(t, o)
	}
	b.Await("document.getElementById('upgrade-list').children.length === 3")
	crashed.kill(t)
	guest := play(t, role{Do: "plain", Address: "127.0.0.1:8008", Command: "python3"})
	awaitRow(b, "8008", "in use")
	b.Await("document.getElementById('log').innerText.includes('mailer') || document.getElementById('log').innerText.includes('8003')")
	shot(t, b, into, "health-light")

	b.Prefer("prefers-color-scheme", "dark")
	open(b, machine, "")
	guest.end(t)
	b.Await("document.getElementById('log').innerText.includes('freed')")
	shot(t, b, into, "health-dark")

	b.Resize(390, 1280)
	b.Prefer("prefers-color-scheme", "light")
	open(b, monitor, "")
	shot(t, b, into, "health-phone")
}

// most is how large a picture may be.
const most = 100 << 10

func shot(t *testing.T, b *browsertest.Browser, into, name string) {
	t.Helper()
	// What a person sees is not what the machine of a test has.
	b.Run(nil, `document.body.style.fontFamily = 'Inter, system-ui, sans-serif'
document.documentElement.style.setProperty('--mono', '"JetBrains Mono", monospace')
for (const e of document.querySelectorAll('.changed')) e.classList.remove('changed')`)
	picture, err := png.Decode(bytes.NewReader(b.Screenshot(false)))
	require.NoError(t, err)
	var small bytes.Buffer
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	require.NoError(t, encoder.Encode(&small, paletted(picture)))
	require.Less(t, small.Len(), most, name)
	require.NoError(t, os.WriteFile(filepath.Join(into, name+".png"), small.Bytes(), 0o644))
}

// paletted is a picture in the 256 colours that it has most of. The rest are shades at the edges of letters.
func paletted(picture image.Image) image.Image {
	bounds := picture.Bounds()
	counts := map[color.Color]int{}
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			counts[picture.At(x, y)]++
		}
	}
	palette := color.Palette(slices.SortedFunc(maps.Keys(counts), func(a, b color.Color) int { return counts[b] - counts[a] }))
	result := image.NewPaletted(bounds, palette[:min(len(palette), 256)])
	draw.Draw(result, bounds, picture, bounds.Min, draw.Src) // each as the colour next to it
	return result
}
