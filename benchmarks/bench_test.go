//go:build linux

package main

import "testing"

func BenchmarkListen(b *testing.B)    { benchmark(b, listenExperiment) }
func BenchmarkFirstFree(b *testing.B) { benchmark(b, firstFreeExperiment) }
func BenchmarkPortToPID(b *testing.B) {
	benchmark(b, portToPIDExperiment(0))
	benchmark(b, portToPIDExperiment(1))
}
func BenchmarkReclaim(b *testing.B)   { benchmark(b, reclaimExperiment) }
func BenchmarkRace(b *testing.B)      { benchmark(b, raceExperiment) }
func BenchmarkAccept(b *testing.B)    { benchmark(b, acceptExperiment) }
func BenchmarkFrontDoor(b *testing.B) { benchmark(b, frontDoorExperiment) }
func BenchmarkSendfile(b *testing.B)  { benchmark(b, sendfileExperiment) }
func BenchmarkUpgrade(b *testing.B)   { benchmark(b, upgradeExperiment) }

func benchmark(b *testing.B, e experiment) {
	l := &lab{scale: fullScale}
	defer l.close()
	rows, err := e.prepare(l)
	if err != nil {
		b.Fatal(err)
	}
	for _, r := range rows {
		for _, c := range r.contestants() {
			b.Run(r.name+"/by="+c.name, func(b *testing.B) {
				b.ReportAllocs()
				var sum outcome
				for b.Loop() {
					o, err := c.do()
					if err != nil {
						b.Fatal(err)
					}
					sum.took += o.took
					sum.failed += o.failed
				}
				// What the jobs took, without what comes before and after each.
				b.ReportMetric(float64(sum.took)/float64(b.N), "ns/op")
				if sum.failed > 0 {
					b.ReportMetric(float64(sum.failed)/float64(b.N), "failed/op")
				}
			})
		}
	}
}
