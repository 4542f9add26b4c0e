// Package spread sends the calls of a client to several servers that answer alike. A server whose connection
// breaks is left at once. A server that keeps its connection and says nothing, because it was stopped or the
// network swallows what is sent, is left once another one has answered in its place.
//
// Three parts work together: the resolver of Scheme lists the servers, the balancer of Policy picks one for each
// call, and Hedge asks a second one if the first is silent.
package spread

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/base"
)

// Policy is the name of the balancer in a service configuration.
const Policy = "keysvc_spread"

const (
	// firstAvoidance is for how long a silent server is left alone before one call tries it again. It doubles up to
	// longestAvoidance.
	firstAvoidance   = time.Second
	longestAvoidance = 8 * time.Second
)

func init() { balancer.Register(builder{}) }

// builder makes a balancer for each connection, with servers of its own.
type builder struct{}

// Name implements balancer.Builder.
func (builder) Name() string { return Policy }

// Build implements balancer.Builder.
func (builder) Build(conn balancer.ClientConn, options balancer.BuildOptions) balancer.Balancer {
	return base.NewBalancerBuilder(Policy, &pickers{servers: make(map[balancer.SubConn]*server)}, base.Config{}).Build(conn, options)
}

// pickers makes the pickers of one connection. gRPC calls Build for one after another.
type pickers struct{ servers map[balancer.SubConn]*server }

// Build implements base.PickerBuilder.
func (p *pickers) Build(info base.PickerBuildInfo) balancer.Picker {
	if len(info.ReadySCs) == 0 {
		clear(p.servers)
		return base.NewErrPicker(balancer.ErrNoSubConnAvailable)
	}
	built := &picker{}
	before := p.servers
	p.servers = make(map[balancer.SubConn]*server, len(info.ReadySCs))
	for conn := range info.ReadySCs {
		known := before[conn]
		if known == nil {
			known = newServer(conn)
		}
		p.servers[conn] = known
		built.servers = append(built.servers, known)
	}
	// Clients that lose a server at the same moment do not all go to the same one next.
	rand.Shuffle(len(built.servers), func(i, j int) { //nolint:gosec // G404: no secret is drawn
		built.servers[i], built.servers[j] = built.servers[j], built.servers[i]
	})
	return built
}

// server is a server that is connected.
type server struct {
	conn balancer.SubConn
	// done is the function that gRPC calls at the end of each call of Hedge.
	done func(balancer.DoneInfo)
	// answers counts the calls of Hedge for which something came back.
	answers atomic.Int64

	// mutex guards what follows.
	mutex sync.Mutex
	// avoided is until when the server is left alone, zero for a server that is not suspect, and avoidance how
	// long that was.
	avoided   time.Time
	avoidance time.Duration
	// suspect is set while avoided is not zero.
	suspect atomic.Bool
}

func newServer(conn balancer.SubConn) *server {
	s := &server{conn: conn}
	s.done = func(info balancer.DoneInfo) {
		if info.BytesReceived {
			s.answered()
		}
	}
	return s
}

// answered notes that something came back.
func (s *server) answered() {
	s.answers.Add(1)
	if !s.suspect.Load() {
		return
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.avoided, s.avoidance = time.Time{}, 0
	s.suspect.Store(false)
}

// accuse makes the server suspect, unless it has answered something since it had answered so many times.
func (s *server) accuse(answers int64) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.answers.Load() != answers {
		return
	}
	now := time.Now()
	if s.suspect.Load() && now.Before(s.avoided) {
		return
	}
	s.avoidance = max(s.avoidance, firstAvoidance)
	s.avoided = now.Add(s.avoidance)
	s.suspect.Store(true)
}

// isAvoided reports whether the server is to be left alone. Once in a while it reports false of a suspect server, for a
// call that may find out because another server is asked soon.
func (s *server) isAvoided(mayFindOut bool) bool {
	if !s.suspect.Load() {
		return false
	}
	if !mayFindOut {
		return true
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	now := time.Now()
	if s.avoided.IsZero() || now.Before(s.avoided) {
		return !s.avoided.IsZero()
	}
	s.avoidance = min(2*s.avoidance, longestAvoidance)
	s.avoided = now.Add(s.avoidance)
	return false
}

// picker picks a server for each call, one after another.
type picker struct {
	servers []*server
	next    atomic.Uint64
}

// Pick implements balancer.Picker. In this order it prefers a server that is not suspect and that the call has not been sent to,
// one that the call has not been sent to, and any.
func (p *picker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	route, _ := info.Ctx.Value(routeKey{}).(*Route)
	count := uint64(len(p.servers))
	first := p.next.Add(1)
	picked, preference := p.servers[first%count], -1
	for offset := range count {
		each := p.servers[(first+offset)%count]
		found := 0
		if !route.went(each) {
			found = 1
			if !each.isAvoided(route != nil && route.hedged) {
				found = 2
			}
		}
		if found > preference {
			picked, preference = each, found
		}
		if preference == 2 {
			break
		}
	}
	route.add(picked, len(p.servers))
	result := balancer.PickResult{SubConn: picked.conn}
	if route != nil && route.hedged {
		// The end of a stream would say nothing: what it received may be old.
		result.Done = picked.done
	}
	return result, nil
}

// Route is where one call or stream was sent.
type Route struct {
	mutex sync.Mutex
	// servers are those that it was sent to, the newest last, and answers how much that one had answered then.
	servers []*server
	answers int64
	// ready is how many servers there were to choose from.
	ready int
	// hedged is set for a call that is sent to another server if this one is silent.
	hedged bool
	// except is a route whose servers are left alone as well.
	except *Route
}

type routeKey struct{}

// Follow returns a context for one call or stream, and where it is sent.
func Follow(ctx context.Context) (context.Context, *Route) {
	route := &Route{}
	return context.WithValue(ctx, routeKey{}, route), route
}

// Silent reports whether the server that it was sent to last is known to say nothing although others answer.
func (r *Route) Silent() bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return len(r.servers) > 0 && r.servers[len(r.servers)-1].suspect.Load()
}

// went reports whether the call was sent to a server.
func (r *Route) went(to *server) bool {
	if r == nil {
		return false
	}
	r.mutex.Lock()
	found := slices.Contains(r.servers, to)
	except := r.except
	r.mutex.Unlock()
	return found || except.went(to)
}

func (r *Route) add(to *server, ready int) {
	if r == nil {
		return
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.servers, r.answers, r.ready = append(r.servers, to), to.answers.Load(), ready
}

// hasOthers reports whether there was a server that the call was not sent to.
func (r *Route) hasOthers() bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return len(r.servers) > 0 && r.ready > 1
}

// accuse makes the server that the call was sent to last suspect, if it has answered nothing since.
func (r *Route) accuse() {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if len(r.servers) > 0 {
		r.servers[len(r.servers)-1].accuse(r.answers)
	}
}
