package server

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/access"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/events"
)

// TestAWrongCallersFileStopsTheStart: it must not leave a store behind that --init has made.
func TestAWrongCallersFileStopsTheStart(t *testing.T) {
	folder := shortFolder(t)
	settings := config.Defaults()
	settings.Callers, settings.Data, settings.Init = filepath.Join(folder, "callers.yaml"), filepath.Join(folder, "data"), true
	for _, test := range []struct{ text, want string }{
		{"", "no such file"},
		{"version: 1\ncallers: [{name: a}]\n", "callers.yaml:2:11: callers[0]: "},
	} {
		if test.text != "" {
			if err := os.WriteFile(settings.Callers, []byte(test.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := Run(t.Context(), settings, &buffer{}, &buffer{})
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "callers file: ") {
			t.Errorf("got %v, want %s", err, test.want)
		}
		if _, err := os.Stat(settings.Data); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a data folder was left: %v", err)
		}
	}
}

// TestTheDefaultIsASocketInTheDataFolder starts a process as production does, and calls it.
func TestTheDefaultIsASocketInTheDataFolder(t *testing.T) {
	settings := config.Defaults()
	settings.Data, settings.Init = filepath.Join(shortFolder(t), "data"), true
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	socket := filepath.Join(settings.Data, "keysvc.sock")
	out, ended := newNotice("keysvc serves on unix://"+socket), make(chan error, 1)
	go func() { ended <- Run(ctx, settings, out, &buffer{}) }()
	select {
	case <-out.seen:
	case err := <-ended:
		t.Fatal(err)
	}
	info, err := os.Stat(socket)
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != fs.ModeSocket {
		t.Errorf("the socket is %v, %v", info, err)
	}
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	who, err := keysvcv1.NewCallerServiceClient(conn).WhoAmI(t.Context(), &keysvcv1.WhoAmIRequest{})
	if err != nil || who.GetName() != "owner" || who.GetSource() != "unix" {
		t.Errorf("got %v, %v", who, err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestSocketsHaveTheModeAndGroupOfTheSettings(t *testing.T) {
	settings := config.Defaults()
	settings.SocketMode = 0o660
	path := filepath.Join(shortFolder(t), "s")
	wanted := config.Listener{Address: "unix://" + path, Purpose: config.PurposeAll}
	expect := func(mode fs.FileMode, group int) {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		owner, _ := info.Sys().(*syscall.Stat_t)
		if info.Mode().Perm() != mode || group >= 0 && int(owner.Gid) != group {
			t.Errorf("mode %o, group %d", info.Mode().Perm(), owner.Gid)
		}
	}
	opened, err := listen(t.Context(), wanted, settings, nil)
	if err != nil {
		t.Fatal(err)
	}
	expect(0o660, -1)
	// While somebody listens, nobody takes the path.
	if _, err := listen(t.Context(), wanted, settings, nil); err == nil || !strings.Contains(err.Error(), "served by another process") {
		t.Errorf("a second listener: %v", err)
	}
	// A socket that was left behind is replaced.
	if unix, is := opened.(*net.UnixListener); is {
		unix.SetUnlinkOnClose(false)
	}
	_ = opened.Close()
	settings.SocketMode = 0o600
	if os.Geteuid() == 0 {
		settings.SocketGroup = "4711"
	}
	if opened, err = listen(t.Context(), wanted, settings, nil); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		expect(0o600, 4711)
	} else {
		expect(0o600, -1)
	}
	_ = opened.Close()
	settings.SocketGroup = "no-such-group"
	if _, err := listen(t.Context(), wanted, settings, nil); err == nil || !strings.Contains(err.Error(), "--socket-group") {
		t.Errorf("an unknown group: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket was left: %v", err)
	}
	// What is no socket is never replaced.
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	settings.SocketGroup = ""
	if _, err := listen(t.Context(), wanted, settings, nil); err == nil {
		t.Error("a file was replaced")
	}
}

// info is an AuthInfo that knows its caller and what its peer proves.
type info struct {
	identity *callers.Identity
	peer     *callers.Peer
}

func (info) AuthType() string                    { return "test" }
func (i info) CallerIdentity() *callers.Identity { return i.identity }
func (i info) CallerPeer() *callers.Peer         { return i.peer }

// tokenJudge knows one token.
type tokenJudge struct {
	token string
	err   error
}

func (tokenJudge) Connection(*callers.Peer) (*callers.Identity, error) {
	return nil, errors.New("nobody")
}

func (j tokenJudge) Bearer(_ context.Context, _ *callers.Peer, bearer string) (*callers.Identity, error) {
	if bearer != j.token || j.err != nil {
		return nil, errors.Join(j.err, errors.New("it proves nothing"))
	}
	return reader, nil
}

var reader = &callers.Identity{Name: "reader", Source: callers.SourceToken, Grants: grants(access.Read)}

func grants(rights ...access.Right) *access.Grants {
	all := new(access.Grants)
	for _, right := range rights {
		all.Add(right, access.All())
	}
	return all
}

// TestWhoACallIsFrom: a token decides alone, where tokens are taken.
func TestWhoACallIsFrom(t *testing.T) {
	gateway := &callers.Identity{Name: "gateway", Grants: grants(access.Validate)}
	past := &callers.Identity{Name: "past", NotAfter: time.Now().Add(-time.Second), Grants: access.Everything()}
	busy := tokenJudge{token: "good", err: callers.ErrBusy}
	for name, test := range map[string]struct {
		of      *callers.Identity
		allowed bool
		sent    []string
		judge   tokenJudge
		needs   access.Right
		want    string
		code    codes.Code
	}{
		"the connection":                  {gateway, true, nil, tokenJudge{}, access.Validate, "gateway", codes.OK},
		"nobody":                          {nil, true, nil, tokenJudge{}, access.Validate, "", codes.Unauthenticated},
		"a token":                         {nil, true, []string{"Bearer good"}, tokenJudge{token: "good"}, access.Read, "reader", codes.OK},
		"a token, in lower case":          {nil, true, []string{"bearer good"}, tokenJudge{token: "good"}, access.Read, "reader", codes.OK},
		"a token beside a certificate":    {gateway, true, []string{"Bearer good"}, tokenJudge{token: "good"}, access.Read, "reader", codes.OK},
		"the right of the certificate":    {gateway, true, []string{"Bearer good"}, tokenJudge{token: "good"}, access.Validate, "", codes.PermissionDenied},
		"a wrong token, a certificate":    {gateway, true, []string{"Bearer bad"}, tokenJudge{token: "good"}, access.Validate, "", codes.Unauthenticated},
		"an empty token":                  {gateway, true, []string{"Bearer "}, tokenJudge{}, access.Validate, "", codes.Unauthenticated},
		"an empty header":                 {gateway, true, []string{""}, tokenJudge{}, access.Validate, "", codes.Unauthenticated},
		"another scheme":                  {gateway, true, []string{"Basic good"}, tokenJudge{token: "good"}, access.Validate, "", codes.Unauthenticated},
		"two tokens":                      {gateway, true, []string{"Bearer good", "Bearer good"}, tokenJudge{token: "good"}, access.Read, "", codes.Unauthenticated},
		"no decision":                     {nil, true, []string{"Bearer good"}, busy, access.Read, "", codes.ResourceExhausted},
		"where tokens are not taken":      {gateway, false, []string{"Bearer good"}, tokenJudge{token: "good"}, access.Validate, "gateway", codes.OK},
		"where tokens are not taken, too": {nil, false, []string{"Bearer good"}, tokenJudge{token: "good"}, access.Read, "", codes.Unauthenticated},
		"an ended certificate":            {past, true, nil, tokenJudge{}, access.Validate, "", codes.Unauthenticated},
		"health, with a wrong token":      {nil, true, []string{"Bearer bad"}, tokenJudge{token: "good"}, access.Anyone, "", codes.OK},
	} {
		d := newTestDoor(t, config.Defaults())
		d.judge = test.judge
		refused := 0
		d.hooks.CallersRefused = func(event events.CallerRefusals) {
			refused++
			if event.Count != 1 || strings.Contains(event.Reason, "good") || strings.Contains(event.Reason, "bad") {
				t.Errorf("%s: the event is %+v", name, event)
			}
		}
		ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: info{test.of, &callers.Peer{BearerAllowed: test.allowed}}})
		if test.sent != nil {
			ctx = metadata.NewIncomingContext(ctx, metadata.MD{"authorization": test.sent})
		}
		from, err := d.identify(ctx, test.needs)
		if err == nil {
			err = d.mayCall(ctx, from.identity, test.needs)
		}
		if status.Code(err) != test.code || err == nil && from.identity.CallerName() != test.want {
			t.Errorf("%s: %q, %v; want %q, %s", name, from.identity.CallerName(), err, test.want, test.code)
		}
		if wrong := test.code == codes.Unauthenticated && test.sent != nil && test.allowed; wrong != (refused == 1) {
			t.Errorf("%s: %d events", name, refused)
		}
	}
}

// TestStreamsOfEndedCredentialsEnd: nothing has changed but the time.
func TestStreamsOfEndedCredentialsEnd(t *testing.T) {
	d := newTestDoor(t, config.Defaults())
	judged := callers.NewTableJudge(1, time.Now)
	d.judge = judged
	ends := time.Now().Add(time.Hour)
	stream := &liveStream{
		live:  callers.NewLive(&callers.Identity{Name: "a", NotAfter: ends, Grants: access.Everything()}),
		needs: access.Validate, peer: &callers.Peer{Source: callers.SourceSPIFFE},
	}
	ended := make(chan error, 2)
	stream.end = func(cause error) { ended <- cause }
	defer d.beginLive(t.Context(), stream, d.live.judged())()
	d.expire(t.Context(), ends.Add(-time.Nanosecond))
	if len(ended) != 0 {
		t.Error("it has ended too early")
	}
	d.expire(t.Context(), ends)
	select {
	case err := <-ended:
		if status.Code(err) != codes.Unauthenticated {
			t.Errorf("it has ended with %v", err)
		}
	default:
		t.Error("it goes on")
	}
	if identity, _ := stream.live.Watch(); identity != nil {
		t.Error("its identity is still there")
	}
}

// TestStreamsThatBeginDuringARoundAreJudged: otherwise a removed caller would stay for good.
func TestStreamsThatBeginDuringARoundAreJudged(t *testing.T) {
	d := newTestDoor(t, config.Defaults())
	d.judge = callers.NewTableJudge(1, time.Now)
	before := d.live.judged()
	d.rejudge(t.Context()) // after the caller was judged, before its stream was noted
	ended := make(chan error, 1)
	stream := &liveStream{
		live: callers.NewLive(reader), needs: access.Read, peer: &callers.Peer{Source: callers.SourceSPIFFE}, end: func(cause error) { ended <- cause },
	}
	defer d.beginLive(t.Context(), stream, before)()
	if len(ended) != 1 {
		t.Error("it was missed")
	}
}

// TestRepeatedEventsAreCounted: a flood of wrong tokens is no flood of lines.
func TestRepeatedEventsAreCounted(t *testing.T) {
	var c counter
	now := time.Now()
	if got := c.count(now); got != 1 {
		t.Errorf("the first: %d", got)
	}
	for range 9 {
		if got := c.count(now.Add(reportInterval - 1)); got != 0 {
			t.Errorf("within the interval: %d", got)
		}
	}
	if got := c.count(now.Add(reportInterval)); got != 10 {
		t.Errorf("after it: %d, want 10", got)
	}
}
