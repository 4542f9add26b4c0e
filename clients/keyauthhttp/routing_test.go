package keyauthhttp_test

import (
	"bufio"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/clients/keyauth"
	"github.com/scribe-mail/keysvc/clients/keyauthhttp"
	"github.com/scribe-mail/keysvc/internal/routertest"
)

// requirements are those of the hostile table.
var requirements = routertest.Requirements

// routes makes routes of the requirements. Their handlers answer with their patterns.
func routes() map[string]keyauthhttp.Route {
	made := make(map[string]keyauthhttp.Route)
	for pattern, requirement := range requirements {
		made[pattern] = keyauthhttp.Route{Requirement: requirement, Handler: says(pattern)}
	}
	return made
}

func TestRedirectIsDecidedAgainWhenFollowed(t *testing.T) {
	bench := newBench(t)
	address := bench.serve(t, keyauthhttp.Config{Routes: routes()})
	for target, status := range map[string]int{"/public/../v1/any": 401, "/v1/folders": 401, "/v1//../public/": 200} {
		got := send(t, address, "GET", target)
		if got.StatusCode != http.StatusTemporaryRedirect {
			t.Errorf("%s: %d", target, got.StatusCode)
		}
		if got = send(t, address, "GET", got.Header.Get("Location")); got.StatusCode != status {
			t.Errorf("%s, followed: %d", target, got.StatusCode)
		}
	}
}

// net/http answers OPTIONS * before any handler. The answer tells nothing.
func TestOptionsStarIsAnsweredByTheServer(t *testing.T) {
	bench := newBench(t)
	address := bench.serve(t, keyauthhttp.Config{Routes: map[string]keyauthhttp.Route{"/": {Requirement: read, Handler: says("all")}}})
	got := send(t, address, "OPTIONS", "*")
	if got.body != "" || got.Header.Get("Allow") != "" || got.Header.Get("Ran") != "" {
		t.Errorf("got %d %s", got.StatusCode, got.body)
	}
}

// FuzzRouting sends any request. A handler may run only if its own requirement was asked for
// with the one right token, or if the route is public.
func FuzzRouting(f *testing.F) {
	asking := new(recorder)
	guard, err := keyauth.NewGuard(asking, keyauth.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	ran := make(map[string]int)
	table := routes()
	for pattern, route := range table {
		route.Handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			ran[pattern]++
			for name := range r.Header {
				if strings.EqualFold(name, "Authorization") {
					panic("the handler can see the token")
				}
			}
			if r.Pattern != pattern {
				panic("the pattern is not the handler's")
			}
		})
		table[pattern] = route
	}
	mux, err := keyauthhttp.NewMux(guard, keyauthhttp.Config{Routes: table})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		request, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			return
		}
		request.RemoteAddr = "192.0.2.1:1234"
		clear(ran)
		asking.questions = nil
		answer := httptest.NewRecorder()
		mux.ServeHTTP(answer, request)
		io.Copy(io.Discard, answer.Body)
		if len(ran) > 1 || len(asking.questions) > 1 {
			t.Fatalf("%v ran, and %v was asked", ran, asking.questions)
		}
		for pattern := range maps.Keys(ran) {
			requirement := requirements[pattern]
			if requirement.IsPublic() != (len(asking.questions) == 0) {
				t.Fatalf("%q ran, and %v was asked", pattern, asking.questions)
			}
			if !requirement.IsPublic() && (asking.questions[0].Requirement != requirement || asking.questions[0].Token != fuzzToken) {
				t.Fatalf("%q ran, and %v was asked", pattern, asking.questions)
			}
		}
		if len(ran) == 0 && answer.Code < 300 {
			t.Fatalf("nothing ran, and the answer is %d", answer.Code)
		}
	})
}
