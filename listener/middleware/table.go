package middleware

// A table is a map that gives memory back: one of Go stays as large as it ever was, and a flood would leave its mark. The
// zero value is empty.
type table[K comparable, V any] struct {
	m    map[K]V
	peak int // of len(m) since it was made
}

func (t *table[K, V]) set(k K, v V) {
	if t.m == nil {
		t.m = make(map[K]V)
	}
	t.m[k] = v
	t.peak = max(t.peak, len(t.m))
}

func (t *table[K, V]) remove(k K) {
	delete(t.m, k)
	if t.peak < 1024 || len(t.m) > t.peak/8 {
		return
	}
	smaller := make(map[K]V, 2*len(t.m))
	for k, v := range t.m {
		smaller[k] = v
	}
	t.m, t.peak = smaller, len(smaller)
}
