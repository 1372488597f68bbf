GOLANGCI  := v2.15.0
PLATFORMS := linux/amd64 linux/arm64 darwin/arm64 windows/amd64 freebsd/amd64
FUZZTIME  := 20s

LINT := .tools/$(GOLANGCI)/golangci-lint

.PHONY: test suites lint bench fuzz cross fmt

# The nested modules first, so that the library's own results come last.
test:
	cd benchmarks && go vet ./... && go test ./...
	cd benchmarks/suites && go vet ./... && go test -parallel 4 ./...
	cd examples/grpc && go vet ./... && go test ./...
	go test -race ./...

# The tests of net, net/http, crypto/tls, grpc, fasthttp and more, with net.Listen replaced by ours: all of them.
suites:
	cd benchmarks/suites && go test -v -parallel 4 -timeout 30m . -complete

# The import rules hold on every system; everything else is looked at on this one.
lint: $(LINT)
	$(LINT) run ./...
	@set -e; for os in darwin windows freebsd; do \
		echo "import rules for $$os"; \
		CGO_ENABLED=0 GOOS=$$os $(LINT) run --enable-only depguard ./...; \
	done

$(LINT):
	GOBIN=$(CURDIR)/$(@D) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI)

bench:
	cd benchmarks && go run .

# Every fuzz target of every package, FUZZTIME each.
fuzz:
	@set -e; list=$$(go test -list '^Fuzz' ./...); \
	echo "$$list" | awk '/^Fuzz/ { name[n++] = $$1 } /^ok/ { for (i = 0; i < n; i++) print $$2, name[i]; n = 0 }' | \
	while read -r pkg name; do \
		echo "$$pkg $$name"; \
		go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null || exit 1; \
	done

# Builds the packages and, through vet, their tests.
cross:
	@set -e; for p in $(PLATFORMS); do \
		echo "build and vet for $$p"; \
		CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} go build ./...; \
		CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} go vet ./...; \
	done

fmt:
	gofmt -l -w .
