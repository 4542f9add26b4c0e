package cli

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// watchInterval is the time between two looks of status --watch.
const watchInterval = 2 * time.Second

func (a *app) statusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the server is, and what is wrong",
		Long: `Show how the server is: first what is wrong and what to do about it, then its
version, its keys, near-caches, store, disk, audit sink, clock and certificate. No
key, member or workspace is named, so every known caller may ask.

The exit status is 0 if nothing is wrong, 1 if something is, and another one if the
server could not be asked.

With --watch the answer is shown anew every 2 seconds, until Ctrl-C. The exit status
is then that of the last answer; a server that does not answer is asked again. With
-o json each answer is then one line.

` + jsonHelp,
		Example: `  keysvc status
  keysvc status --watch
  keysvc status -o json | jq -r '.problems[].problem_id'`,
	}
	watch := cmd.Flags().Bool("watch", false, "show it anew every 2 seconds, until Ctrl-C")
	return a.clientCommand(cmd, formatsOfAnswers, func(ctx context.Context, s *session, _ []string) error {
		if *watch {
			ticker := time.NewTicker(watchInterval)
			defer ticker.Stop()
			return s.watchStatus(ctx, ticker.C)
		}
		response, err := s.statuses.GetStatus(ctx, &keysvcv1.GetStatusRequest{})
		if err != nil {
			return err
		}
		if err := s.out.answer(response, func() error { return s.out.write([]byte(s.statusText(response))) }); err != nil {
			return err
		}
		return wrongStatus(response)
	})
}

// wrongStatus returns the error that ends the command with ExitFailure if something is wrong.
func wrongStatus(response *keysvcv1.GetStatusResponse) error {
	if len(response.GetProblems()) > 0 {
		return statusError(ExitFailure)
	}
	return nil
}

// watchStatus shows the status now and on each tick, until ctx ends. A server that does not answer is
// asked again.
func (s *session) watchStatus(ctx context.Context, ticks <-chan time.Time) error {
	redraws := s.out.width > 0 && s.out.format == formatTable
	var last error
	for isFirst := true; ; isFirst = false {
		response, err := s.statuses.GetStatus(ctx, &keysvcv1.GetStatusRequest{})
		if ctx.Err() != nil {
			return last
		}
		last = err
		switch {
		case err != nil && redraws:
			err = s.redraw(isFirst, printable(redact(err.Error()))+"\n")
		case err != nil:
			err = s.note("error: %s", err)
		case redraws:
			last, err = wrongStatus(response), s.redraw(isFirst, s.statusText(response))
		default:
			last, err = wrongStatus(response), s.showAnother(response, isFirst)
		}
		if err != nil {
			return err
		}
		select {
		case <-ticks:
		case <-ctx.Done():
			return last
		}
	}
}

// redraw replaces the text on the terminal. Each line is overwritten, and
// nothing is cleared before, so that the terminal does not flicker.
func (s *session) redraw(isFirst bool, text string) error {
	const home, clearAll, clearLine, clearBelow = "\x1b[H", "\x1b[2J", "\x1b[K", "\x1b[J"
	begin := home
	if isFirst {
		begin = clearAll + home
	}
	text += "\n" + s.Now().UTC().Format("15:04:05 UTC") + ", Ctrl-C ends it\n"
	return s.out.write([]byte(begin + strings.ReplaceAll(text, "\n", clearLine+"\n") + clearBelow))
}

// showAnother writes one answer of several.
func (s *session) showAnother(response *keysvcv1.GetStatusResponse, isFirst bool) error {
	switch s.out.format { //nolint:exhaustive // formatsOfAnswers has no other
	case formatJSON:
		return s.out.jsonLine(response)
	case formatYAML:
		if err := s.out.write([]byte("---\n")); err != nil {
			return err
		}
		return s.out.yaml(response)
	}
	text := s.statusText(response)
	if !isFirst {
		text = "\n" + text
	}
	return s.out.write([]byte(text))
}

// statusText returns the status for people.
func (s *session) statusText(response *keysvcv1.GetStatusResponse) string {
	var text strings.Builder
	text.WriteString(problemsText(response.GetProblems()) + "\n")
	p := s.out
	keys, sessions, store := response.GetKeys(), response.GetSessions(), response.GetStore()
	fields := []field{
		{"Server", s.address},
		{"Version", response.GetVersion()},
		{"Running since", p.minute(response.GetStartTime(), "")},
		{"Epoch", response.GetEpoch()},
		{"Revision", fmt.Sprint(response.GetRevision())},
		{"Schema", schemaText(response)},
		{"Last change", p.minute(response.GetLastCommitTime(), "none")},
		{"Last backup", p.minute(response.GetLastBackupTime(), "not known here")},
		{"Keys", fmt.Sprint(keys.GetTotal())},
	}
	for _, state := range keys.GetStates() {
		fields = append(fields, field{"  " + enumWord(state.GetState(), keyStatePrefix), fmt.Sprint(state.GetCount())})
	}
	if keys != nil && keys.ExpiringWithin_30Days != nil {
		fields = append(fields, field{"  expire soon", fmt.Sprintf("%d within 7 days, %d within 30", keys.GetExpiringWithin_7Days(), keys.GetExpiringWithin_30Days())})
	}
	fields = append(fields,
		field{"Members", fmt.Sprintf("%d in %s", response.GetMemberCount(), count(response.GetWorkspaceCount(), "workspace"))},
		field{"Near-caches", sessionsText(sessions)},
		field{"Staleness", sessions.GetStaleness().AsDuration().String() + " at most"},
		field{"Store", storeStatusText(store)},
		field{"Reserve", ifKnown(store.GetReserveBytes(), bytesText(store.GetReserveBytes())+", for changes that take something away")},
		field{"Disk", ifKnown(store.GetDiskBytes(), bytesText(store.GetDiskFreeBytes())+" of "+bytesText(store.GetDiskBytes())+" free")},
		field{"Audit sink", followerText(response.GetAuditSink())},
		field{"Anchor", followerText(response.GetAnchor())},
		field{"Clock", p.clockText(response)},
	)
	for _, member := range store.GetMembers() {
		fields = append(fields, field{fmt.Sprintf("etcd member %d", member.GetNumber()), memberRoomText(member)})
	}
	for _, certificate := range response.GetCertificates() {
		name := "Certificate"
		if certificate.GetUse() == keysvcv1.CertificateUse_CERTIFICATE_USE_CLIENT_AUTHORITY {
			name = "Authority of " + cmp.Or(certificate.GetTrustDomain(), "others")
		}
		fields = append(fields, field{name, "ends " + p.deadline(certificate.GetExpireTime(), "at no time")})
	}
	text.WriteString(record(fields...))
	return text.String()
}

// problemsText returns what is wrong.
func problemsText(problems []*keysvcv1.StatusProblem) string {
	if len(problems) == 0 {
		return "All is well.\n"
	}
	var text strings.Builder
	for _, problem := range problems {
		word := enumWord(problem.GetSeverity(), "PROBLEM_SEVERITY_")
		text.WriteString(printable(strings.ToUpper(word)+" "+problem.GetProblemId()) + "\n")
		text.WriteString("  " + printable(problem.GetDescription()) + "\n")
		text.WriteString("  " + printable(problem.GetAction()) + "\n")
	}
	return text.String()
}

func sessionsText(sessions *keysvcv1.SessionStatus) string {
	text := fmt.Sprintf("%d of at most %d, %d in use", sessions.GetOpen(), sessions.GetLimit(), sessions.GetLeased())
	switch behind := sessions.GetBehind(); {
	case sessions.GetLeased() == 0:
		return text
	case behind == 0:
		return text + ", all up to date"
	default:
		return text + fmt.Sprintf(", %d behind by up to %s and %s", behind,
			count(sessions.GetUnconfirmedChanges(), "change"), sessions.GetLag().AsDuration().Round(time.Millisecond))
	}
}

func storeStatusText(store *keysvcv1.StoreStatus) string {
	switch store.GetState() {
	case keysvcv1.StoreState_STORE_STATE_SILENT:
		return "the disk does not answer"
	case keysvcv1.StoreState_STORE_STATE_UNSPECIFIED:
		return "not known"
	case keysvcv1.StoreState_STORE_STATE_OK, keysvcv1.StoreState_STORE_STATE_FULL, keysvcv1.StoreState_STORE_STATE_DOWN,
		keysvcv1.StoreState_STORE_STATE_EXHAUSTED:
	}
	if members := len(store.GetMembers()); members > 0 {
		return fmt.Sprintf("%s, in etcd with %s", enumWord(store.GetState(), "STORE_STATE_"), count(int64(members), "member"))
	}
	return fmt.Sprintf("%s, file of %s, %s of it free",
		enumWord(store.GetState(), "STORE_STATE_"), bytesText(store.GetFileBytes()), bytesText(store.GetFreeBytes()))
}

// memberRoomText returns how a member of the cluster is.
func memberRoomText(member *keysvcv1.StoreMember) string {
	text := enumWord(member.GetState(), "STORE_MEMBER_STATE_") + ", database of " + bytesText(member.GetDatabaseBytes()) +
		", " + bytesText(member.GetFreeBytes()) + " of it free"
	if quota := member.GetQuotaBytes(); quota > 0 {
		text += fmt.Sprintf(", %d %% of its quota", 100*member.GetDatabaseBytes()/quota)
	}
	return text
}

// schemaText returns the schema of the store, and what the server knows beyond it; "" for a server that does not
// say.
func schemaText(response *keysvcv1.GetStatusResponse) string {
	schema, newest := response.GetSchema(), response.GetNewestSchema()
	switch {
	case newest == 0:
		return ""
	case schema == 0:
		return fmt.Sprintf("not known; this server knows up to %d", newest)
	case schema < newest && response.GetStoreKind() == storeKindEtcd:
		return fmt.Sprintf("%d; this server knows up to %d (keysvc upgrade status)", schema, newest)
	}
	return fmt.Sprint(schema)
}

func followerText(follower *keysvcv1.FollowerStatus) string {
	text := enumWord(follower.GetState(), "FOLLOWER_STATE_")
	if follower.GetRevision() > 0 {
		text += fmt.Sprintf(", has revision %d", follower.GetRevision())
	}
	return text
}

func (p *printer) clockText(response *keysvcv1.GetStatusResponse) string {
	clock := response.GetClock()
	text := enumWord(clock.GetState(), "CLOCK_STATE_") + ", " + response.GetServerTime().AsTime().Format("2006-01-02 15:04:05 UTC")
	if ahead := response.GetServerTime().AsTime().Sub(p.now()).Round(time.Second); ahead.Abs() >= 2*time.Second {
		text += fmt.Sprintf(", %s from the clock here", ahead)
	}
	if !clock.GetPurges() {
		text += ", purges nothing"
	}
	return text
}

// ifKnown returns a text, or "" if a number of the server's is 0, which stands for not known.
func ifKnown(number int64, text string) string {
	if number == 0 {
		return ""
	}
	return text
}

// bytesText returns a number of bytes in the largest unit of which it has at least one.
func bytesText(bytes int64) string {
	units := []string{"KiB", "MiB", "GiB", "TiB"}
	if bytes < 1024 {
		return count(bytes, "byte")
	}
	number, unit := float64(bytes)/1024, 0
	for number >= 1024 && unit < len(units)-1 {
		number, unit = number/1024, unit+1
	}
	return fmt.Sprintf("%.1f %s", number, units[unit])
}
