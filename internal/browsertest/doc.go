// Package browsertest drives the real Chromium in tests, by WebDriver. It needs Linux and Debian's packages chromium and
// chromium-driver.
package browsertest
