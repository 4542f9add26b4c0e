package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/config"
)

// storeKindEtcd is how a server calls a store in etcd (GetStatusResponse.store_kind).
const storeKindEtcd = "etcd"

func (a *app) upgradeCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:     "upgrade",
		Short:   "See which schemas the servers over one store know, and switch the newest on",
		Example: `  keysvc upgrade status --addr keysvc-1:7480,keysvc-2:7480,keysvc-3:7480`,
	},
		a.upgradeStatusCommand(),
		a.upgradeFinishCommand(),
	)
}

const (
	allServersHelp = `Give all servers over the store: as a list with commas between, or by names. Each
address of a name counts as a server. keysvc keeps no list of its servers: one
that is not given is not asked.`
	upgradeJSONHelp = `With -o json the answer is an object: servers has for each server its address,
version, epoch, store_kind, schema and newest_schema, or why it did not answer
(error); schema is the one in force, and newest_schema what all of them know.`
)

func (a *app) upgradeStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the version of each server, the schema in force, and what each server knows",
		Long: `Show the version of each server over a store in etcd, the schema that it sees in
force, and the newest schema that it knows; then what keysvc upgrade finish would
do.

` + allServersHelp + `

The exit status is 0 if all of them answered, and 8 if one did not.

` + upgradeJSONHelp,
		Example: `  keysvc upgrade status --addr keysvc-1:7480,keysvc-2:7480,keysvc-3:7480
  keysvc upgrade status --addr keysvc.internal:7480 -o json`,
	}
	return a.clientCommand(cmd, formatsOfEvents, func(ctx context.Context, s *session, _ []string) error {
		u, err := s.lookAtServers(ctx)
		if err != nil {
			return err
		}
		if s.out.format == formatJSON {
			if err := s.out.plain(u.shown(nil)); err != nil {
				return err
			}
			return u.unanswered()
		}
		if err := s.out.write([]byte(u.text(s.out.width))); err != nil {
			return err
		}
		if err := u.unanswered(); err != nil {
			return err
		}
		return s.out.line("%s", u.outlook())
	})
}

func (a *app) upgradeFinishCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "finish",
		Short: "Switch on the newest schema, once every server over the store knows it",
		Long: `Raise the schema of a store in etcd to the newest one, once every server over it
has been replaced. It cannot be undone: from then on an older version does not
start over this store, and one that runs ends.

` + allServersHelp + `

First each server is asked for its version and what it knows. If one does not
answer, or does not know the newest schema, nothing is changed.
` + confirmHelp + `
If the store has that schema already, nothing is changed, and the exit status is 0.

` + upgradeJSONHelp + `
finished is the API's response to the change; null if nothing was to be done.`,
		Example: `  keysvc upgrade finish --addr keysvc-1:7480,keysvc-2:7480,keysvc-3:7480
  keysvc upgrade finish --addr keysvc-1:7480,keysvc-2:7480,keysvc-3:7480 --yes -o json`,
	}
	yes := yesFlag(cmd)
	actor := a.actorFlag(cmd)
	return a.clientCommand(cmd, formatsOfEvents, func(ctx context.Context, s *session, _ []string) error {
		return s.finishUpgrade(ctx, *yes, optional(cmd, "actor", actor))
	})
}

// finishUpgrade raises the schema of the store, if every server knows the new one.
func (s *session) finishUpgrade(ctx context.Context, confirmed bool, actor *string) error {
	u, err := s.lookAtServers(ctx)
	if err != nil {
		return err
	}
	// The answer follows if it is JSON; then the table is for the person alone.
	target := s.Stderr
	if s.out.format != formatJSON {
		target = s.out.out
	}
	if _, err := io.WriteString(target, u.text(s.out.width)); err != nil {
		return fmt.Errorf("write the answer: %w", err)
	}
	if err := u.obstacle(); err != nil {
		return err
	}
	if u.inForce() == u.newest() {
		if s.out.format == formatJSON {
			return s.out.plain(u.shown(nil))
		}
		return s.out.line("The store has schema %d already: nothing is to be done.", u.newest())
	}
	if !confirmed {
		if err := s.confirm(ctx, fmt.Sprintf("Are these all servers over the store? Raise its schema from %d to %d for good? Type yes to confirm:",
			u.inForce(), u.newest()), "yes"); err != nil {
			return err
		}
	}
	response, err := s.settings.FinishUpgrade(ctx, &keysvcv1.FinishUpgradeRequest{Schema: u.newest(), ActorMemberId: actor})
	if err != nil {
		return advise(err, func(call *callError) string {
			if call.maybeDone() {
				return "keysvc upgrade status shows which schema is in force"
			}
			return ""
		})
	}
	if response.GetSchema() != u.newest() {
		return fmt.Errorf("the schema of the store is %d now, and not %d: the server that was asked is of another version than before; see keysvc upgrade status", response.GetSchema(), u.newest())
	}
	if s.out.format == formatJSON {
		return s.out.plain(u.shown(response))
	}
	if response.GetReplacedSchema() == response.GetSchema() {
		return s.out.line("The store has schema %d already: somebody else has finished the upgrade.", response.GetSchema())
	}
	return s.out.line("The store has schema %d now; it was %d. Servers that do not know it end, and do not start.", response.GetSchema(), response.GetReplacedSchema())
}

// upgrade is what the servers over one store know.
type upgrade struct{ servers []upgradeServer }

// upgradeServer is one server.
type upgradeServer struct {
	address string
	// status is nil if the server did not answer, and err says why.
	status *keysvcv1.GetStatusResponse
	err    error
}

// lookAtServers asks every server that is given.
func (s *session) lookAtServers(ctx context.Context) (*upgrade, error) {
	connections, err := s.connection.each(ctx)
	if err != nil {
		return nil, err
	}
	u := &upgrade{servers: make([]upgradeServer, len(connections))}
	var asking sync.WaitGroup
	for index, connection := range connections {
		asking.Go(func() {
			status, err := s.statusAt(ctx, connection)
			u.servers[index] = upgradeServer{connection.server(), status, err}
		})
	}
	asking.Wait()
	return u, ctx.Err()
}

// statusAt asks one server how it is.
func (s *session) statusAt(ctx context.Context, at *connection) (*keysvcv1.GetStatusResponse, error) {
	conn, err := dial(at, s.timeout)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // the answer is there, or an error that matters more
	return keysvcv1.NewStatusServiceClient(conn).GetStatus(ctx, &keysvcv1.GetStatusRequest{})
}

// each returns a connection to each single server: one for each address that a name has.
func (c *connection) each(ctx context.Context) ([]*connection, error) {
	var all []*connection
	for _, address := range c.addresses {
		found := []config.Address{address}
		one := *c
		host, port, err := net.SplitHostPort(address.Target)
		// localhost is one machine, whatever its addresses are.
		if _, isIP := netip.ParseAddr(host); address.Network == "tcp" && err == nil && isIP != nil && host != "localhost" {
			hosts, err := net.DefaultResolver.LookupHost(ctx, host)
			if err != nil {
				return nil, &silence{fmt.Sprintf("the name %s cannot be looked up, so not every server can be asked: %s", host, err)}
			}
			one.name, found = address.Target, nil
			for _, each := range hosts {
				found = append(found, config.Address{Network: address.Network, Target: net.JoinHostPort(each, port)})
			}
		}
		for _, each := range found {
			if slices.ContainsFunc(all, func(other *connection) bool { return other.addresses[0] == each }) {
				continue
			}
			single := one
			single.addresses = []config.Address{each}
			all = append(all, &single)
		}
	}
	return all, nil
}

// inForce returns the newest schema that a server sees in force; 0 if none says which.
func (u *upgrade) inForce() (schema int32) {
	for _, server := range u.servers {
		schema = max(schema, server.status.GetSchema())
	}
	return schema
}

// newest returns the newest schema that a server knows; 0 if none says what it knows.
func (u *upgrade) newest() (schema int32) {
	for _, server := range u.servers {
		schema = max(schema, server.status.GetNewestSchema())
	}
	return schema
}

// unanswered returns an error if a server did not answer.
func (u *upgrade) unanswered() error {
	var silent []string
	var first error
	for _, server := range u.servers {
		if server.err != nil {
			silent, first = append(silent, server.address), cmp.Or(first, server.err)
		}
	}
	if first == nil {
		return nil
	}
	text := "this server did not answer: "
	if len(silent) > 1 {
		text = "these servers did not answer: "
	}
	text += strings.Join(silent, ", ")
	if call, is := errors.AsType[*callError](first); is {
		call.advice = append(call.advice, text)
		return call
	}
	return fmt.Errorf("%w; %s", first, text)
}

// obstacle returns why the schema cannot be raised to the newest that a server knows; nil if it can.
func (u *upgrade) obstacle() error {
	if err := u.unanswered(); err != nil {
		return err
	}
	first := u.servers[0]
	var unaware []string
	for _, server := range u.servers {
		status := server.status
		switch {
		case status.GetNewestSchema() == 0:
			return &refusal{fmt.Sprintf("nothing was changed: %s (%s) does not say which schemas it knows; replace it by a newer version first", server.address, status.GetVersion())}
		case status.GetStoreKind() != storeKindEtcd:
			return &refusal{fmt.Sprintf("nothing was changed: the store of %s is a file, whose schema is raised when it is opened", server.address)}
		case status.GetEpoch() != first.status.GetEpoch():
			return &refusal{fmt.Sprintf("nothing was changed: %s and %s do not have the same store, their epochs are %s and %s",
				first.address, server.address, first.status.GetEpoch(), status.GetEpoch())}
		case status.GetNewestSchema() < u.newest():
			unaware = append(unaware, fmt.Sprintf("%s (%s) knows up to %d", server.address, status.GetVersion(), status.GetNewestSchema()))
		}
	}
	if len(unaware) > 0 {
		return &refusal{fmt.Sprintf("nothing was changed: not every server knows schema %d; replace it first: %s", u.newest(), strings.Join(unaware, "; "))}
	}
	return nil
}

// outlook says what can be done now.
func (u *upgrade) outlook() string {
	err := u.obstacle()
	switch {
	case err != nil:
		return "The schema cannot be raised: " + strings.TrimPrefix(err.Error(), "nothing was changed: ") + "."
	case u.inForce() == u.newest():
		return fmt.Sprintf("The store has schema %d, the newest one that these servers know.", u.newest())
	}
	return fmt.Sprintf("All of these servers know schema %d. keysvc upgrade finish raises the schema of the store to it.", u.newest())
}

// text returns the servers as a table.
func (u *upgrade) text(width int) string {
	t := newTable([]column{{title: "SERVER"}, {title: "SCHEMA"}, {title: "NEWEST"}, {title: "VERSION", cutTo: 20}}, false, width)
	for _, server := range u.servers {
		if server.err != nil {
			t.add(server.address, "-", "-", "no answer: "+redact(server.err.Error()))
			continue
		}
		t.add(server.address, schemaNumber(server.status.GetSchema()), schemaNumber(server.status.GetNewestSchema()), server.status.GetVersion())
	}
	return t.take()
}

// schemaNumber returns a schema as a table shows it.
func schemaNumber(schema int32) string {
	if schema == 0 {
		return "-"
	}
	return fmt.Sprint(schema)
}

// shownUpgrade is the answer of the commands as JSON.
type shownUpgrade struct {
	Servers      []shownUpgradeServer `json:"servers"`
	Schema       int32                `json:"schema"`
	NewestSchema int32                `json:"newest_schema"`
	Finished     *shownFinished       `json:"finished"`
}

type shownUpgradeServer struct {
	Address      string `json:"address"`
	Version      string `json:"version"`
	Epoch        string `json:"epoch"`
	StoreKind    string `json:"store_kind"`
	Schema       int32  `json:"schema"`
	NewestSchema int32  `json:"newest_schema"`
	Error        string `json:"error,omitempty"`
}

// shownFinished is FinishUpgradeResponse, as the API's JSON has it.
type shownFinished struct {
	ReplacedSchema int32  `json:"replaced_schema"`
	Schema         int32  `json:"schema"`
	Revision       int64  `json:"revision,string"`
	Epoch          string `json:"epoch"`
}

// shown returns the answer as JSON has it. The newest schema is what all servers know, 0 if one of them does not say.
func (u *upgrade) shown(finished *keysvcv1.FinishUpgradeResponse) shownUpgrade {
	answer := shownUpgrade{Schema: u.inForce(), NewestSchema: u.newest()}
	for _, server := range u.servers {
		shown := shownUpgradeServer{
			Address: server.address, Version: server.status.GetVersion(), Epoch: server.status.GetEpoch(), StoreKind: server.status.GetStoreKind(),
			Schema: server.status.GetSchema(), NewestSchema: server.status.GetNewestSchema(),
		}
		if server.err != nil {
			shown.Error = redact(server.err.Error())
		}
		answer.Servers = append(answer.Servers, shown)
		answer.NewestSchema = min(answer.NewestSchema, shown.NewestSchema)
	}
	if finished != nil {
		answer.Schema = finished.GetSchema()
		answer.Finished = &shownFinished{finished.GetReplacedSchema(), finished.GetSchema(), finished.GetRevision(), finished.GetEpoch()}
	}
	return answer
}
