package keystest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/scribe-mail/keysvc/internal/clock"
	"github.com/scribe-mail/keysvc/internal/keys"
	"github.com/scribe-mail/keysvc/internal/policy"
	"github.com/scribe-mail/keysvc/internal/projection"
	"github.com/scribe-mail/keysvc/internal/service"
	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
	"github.com/scribe-mail/keysvc/internal/validation"
)

// Fleet is one store for several managers.
type Fleet interface {
	// Open makes a store and returns it as each of a number of managers opens it. If only one
	// process can open the store, that is the same storage.Store several times.
	Open(t testing.TB, managers int) []storage.Store
	// Check examines the closed store as an operator would.
	Check(t testing.TB)
}

// FailingFleet is a Fleet whose store can be taken down.
type FailingFleet interface {
	Fleet
	// Fail makes the next commit fail with an unknown outcome, before or after it is written. The
	// store is then down until it is loaded again.
	Fail(written bool)
}

// BoltFleet is a Fleet on one file. Its tests are not about durability, so the file is in memory if
// there is a folder for that.
type BoltFleet struct {
	// Config is what the store is opened with.
	Config boltstore.Config
	path   string
}

// Open implements Fleet.
func (f *BoltFleet) Open(t testing.TB, managers int) []storage.Store {
	t.Helper()
	folder, err := os.MkdirTemp("/dev/shm", "keysvc-several-*")
	if err != nil {
		folder = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	f.path = filepath.Join(folder, "keysvc.db")
	f.Config.Create, f.Config.Reserve = boltstore.CreateIfAbsent, -1
	f.Config.FeedEntries = 1 << 20
	store, err := boltstore.Open(f.path, f.Config)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Repeat([]storage.Store{store}, managers)
}

// Check implements Fleet.
func (f *BoltFleet) Check(t testing.TB) {
	t.Helper()
	Bolt{f.path}.Check(t)
}

// Campaign configures RunSeveral and SimulateSeveral.
type Campaign struct {
	// Seed decides all random choices.
	Seed uint64
	// Managers share the store, each with a projection and a validator of its own.
	Managers int
	// Callers is the number of concurrent callers. Each calls random managers, one call after
	// another.
	Callers int
	// Calls is the number of calls of all callers together.
	Calls int
	// Workspaces is the number of workspaces that the calls use.
	Workspaces int
	// Faults are those of the links of all managers.
	Faults Faults
	// LocalBarriers makes managers read the barrier of the store from memory if the store allows
	// that. Their links then cannot hold the barrier back.
	LocalBarriers bool
	// Restarts is the rate at which managers are restarted: once in that many calls; 0 for never.
	Restarts int
	// Deadline of a call. Default: 20 s.
	Deadline time.Duration
}

// RunSeveral makes concurrent calls of several managers of one store, with delays and faults between
// managers and store, and compares every answer with what was true. Changes and reads must be
// linearizable. Validations, and answers that commit nothing, must reflect what any manager acknowledged
// before they began. Errors that faults cause are not violations.
func RunSeveral(t testing.TB, fleet Fleet, campaign Campaign) Result {
	t.Helper()
	s := openSeveral(t, fleet, campaign)
	s.switchTo(&delays{random: rand.New(rand.NewPCG(campaign.Seed, 2))})
	s.play()
	s.calm()
	return s.finish()
}

// SimulateSeveral does the same as RunSeveral in a bubble of testing/synctest, one step at a time, in an
// order that the seed decides. Calls can be held back for long, because waiting takes no time. The store
// must not use the network.
func SimulateSeveral(t *testing.T, fleet Fleet, campaign Campaign) Result {
	t.Helper()
	var result Result
	synctest.Test(t, func(t *testing.T) {
		s := openSeveral(t, fleet, campaign)
		synctest.Wait() // until all projections have caught up
		schedule := &simulation{random: rand.New(rand.NewPCG(campaign.Seed, 2))}
		done := make(chan struct{})
		s.switchTo(schedule)
		go func() {
			s.play()
			close(done)
		}()
		schedule.drive(campaign.Managers, done)
		s.calm()
		schedule.open()
		// Holding a barrier back for longer than the projection waits for it is a fault.
		s.excused = s.excused || !campaign.LocalBarriers
		result = s.finish()
	})
	return result
}

// seat is one manager with its link, projection and validator.
type seat struct {
	number     int
	link       *link
	projection *projection.Projection
	manager    service.Verbs
	validator  *validation.Validator
	stop       context.CancelFunc
}

// several is one run.
type several struct {
	campaign Campaign
	t        testing.TB
	fleet    Fleet
	stores   []storage.Store
	pacer    *switchable
	outage   *outage
	history  *history
	clock    *Clock
	setup    *caller // makes the calls before and after those of the other callers
	versions atomic.Int64
	pool     pool
	// brief admits one caller at a time to the calls that move the clock, restarting one at a time to
	// restarts.
	brief, restarting sync.Mutex

	following sync.WaitGroup

	// excused is set if answers may be errors that faults cause.
	excused bool

	mutex sync.Mutex
	seats []*seat
	first *truth
}

// switchable is a pacer that can be replaced.
type switchable struct{ now atomic.Pointer[pacer] }

func (s *switchable) pause(ctx context.Context, seat int, at point) error {
	return (*s.now.Load()).pause(ctx, seat, at)
}

func (s *several) switchTo(pace pacer) { s.pacer.now.Store(&pace) }

func openSeveral(t testing.TB, fleet Fleet, campaign Campaign) *several {
	t.Helper()
	if campaign.Deadline == 0 {
		campaign.Deadline = 20 * time.Second
	}
	s := &several{
		campaign: campaign,
		t:        t,
		fleet:    fleet,
		stores:   fleet.Open(t, campaign.Managers),
		pacer:    &switchable{},
		outage:   newOutage(),
		history:  newHistory(),
		clock:    &Clock{at: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)},
		seats:    make([]*seat, campaign.Managers),
		excused:  campaign.Faults.any() || campaign.Restarts > 0,
	}
	s.setup = &caller{several: s}
	s.switchTo(atOnce{})
	for number := range s.seats {
		s.start(number, Faults{})
	}
	active := policy.Default()
	for _, each := range s.seats { // as each process does when it starts
		if _, err := each.manager.InstallPolicy(t.Context(), Actor, active); err != nil {
			t.Fatal(err)
		}
	}
	s.first = newTruth(active)
	s.prepare()
	for _, each := range s.seats {
		each.link.set(campaign.Faults)
	}
	return s
}

// start starts the manager of a seat.
func (s *several) start(number int, faults Faults) {
	inside := s.stores[number]
	if _, has := storage.As[storage.LocalBarrierReader](inside); has && !s.campaign.LocalBarriers {
		inside = bare{inside}
	}
	l := &link{
		Store: inside, seat: number, pacer: s.pacer, outage: s.outage, history: s.history, faults: faults,
		random: rand.New(rand.NewPCG(s.campaign.Seed, uint64(100+number))),
	}
	if failing, can := s.fleet.(FailingFleet); can {
		l.fail = failing.Fail
	}
	store := storage.Store(l)
	ctx, cancel := context.WithCancel(context.Background())
	started := &seat{number: number, link: l, projection: projection.New(store, nil), stop: cancel}
	position, err := started.projection.Load(ctx)
	for attempt := 0; err != nil; attempt++ {
		if attempt == 100 {
			s.t.Errorf("manager %d cannot load: %v", number, err)
			break
		}
		position, err = started.projection.Load(ctx)
	}
	steady := clock.Steady(s.clock.Now, position.Time)
	started.manager = service.Verbs{Manager: keys.New(keys.Config{Store: store, Projection: started.projection, Now: steady})}
	started.validator = validation.New(started.projection, store, steady)
	s.following.Go(func() {
		if err := started.projection.Follow(ctx); !errors.Is(err, context.Canceled) {
			s.t.Errorf("manager %d follows no more: %v", number, err)
		}
	})
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.seats[number] = started
}

// restart stops a manager without notice, and starts it again. Calls in flight continue with the old
// manager, whose projection no longer follows.
func (s *several) restart(number int) {
	if !s.restarting.TryLock() {
		return // not with Lock: a simulation cannot see that a goroutine waits for a mutex
	}
	defer s.restarting.Unlock()
	s.seat(number).stop()
	s.start(number, s.campaign.Faults)
}

func (s *several) seat(number int) *seat {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.seats[number]
}

// play makes the calls of all callers.
func (s *several) play() {
	var callers sync.WaitGroup
	for number := range s.campaign.Callers {
		random := rand.New(rand.NewPCG(s.campaign.Seed, uint64(1000+number)))
		caller := &caller{several: s, number: 1 + number, random: random, left: s.campaign.Calls / s.campaign.Callers}
		callers.Go(caller.run)
	}
	callers.Wait()
}

// calm ends all faults and delays.
func (s *several) calm() {
	s.switchTo(atOnce{})
	for number := range s.seats {
		s.seat(number).link.set(Faults{})
	}
}

// finish checks that everything works without faults, closes the store, and judges all answers.
func (s *several) finish() Result {
	s.t.Helper()
	violations := s.checkCalm()
	var log []*committedChange
	_, err := s.stores[0].Load(context.Background(), func(storage.Item) error { return nil })
	if err == nil {
		log, err = s.history.readLog(context.Background(), s.stores[0])
	}
	if err != nil {
		s.t.Fatalf("reading the log: %v", err)
	}
	for number := range s.seats {
		s.seat(number).stop()
	}
	s.following.Wait()
	for _, store := range s.stores {
		if err := store.Close(); err != nil {
			s.t.Errorf("closing: %v", err)
		}
	}
	s.fleet.Check(s.t)
	return Result{
		Violations: append(violations, s.history.judge(s.first, log, s.excused)...),
		Answers:    s.history.tally(),
	}
}

// Result is the outcome of a run.
type Result struct {
	// Violations are the promises that were not kept.
	Violations []Violation
	// Answers counts the outcomes of each verb.
	Answers map[string]int
}

// Summary describes how often each rule was broken, with the first two cases of each.
func (r Result) Summary() string {
	counts := make(map[string]int)
	var text strings.Builder
	for _, each := range r.Violations {
		if counts[each.Rule]++; counts[each.Rule] <= 2 {
			fmt.Fprintf(&text, "%s\n    %s\n", each.Rule, each.Text)
		}
	}
	for _, rule := range sortedKeys(counts) {
		fmt.Fprintf(&text, "%6d × %s\n", counts[rule], rule)
	}
	return text.String()
}

// RandomCampaign returns a small campaign, whose managers, callers and faults the seed decides.
func RandomCampaign(seed uint64) Campaign {
	random := rand.New(rand.NewPCG(seed, 3))
	campaign := Campaign{
		Seed:          seed,
		Managers:      1 + random.IntN(3),
		Callers:       2 + random.IntN(5),
		Calls:         200,
		Workspaces:    1 + random.IntN(3),
		LocalBarriers: random.IntN(3) == 0,
	}
	if random.IntN(4) > 0 {
		campaign.Faults = Faults{Lost: 20, Dropped: 40, Down: 2, Unavailable: 80, Broken: 60}
		campaign.Restarts = 60
	}
	return campaign
}
