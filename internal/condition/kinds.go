package condition

import (
	"fmt"
	"strings"
	"time"
)

const (
	// lowDisk and lowDiskShare say when a disk counts as nearly full: if less than lowDisk bytes and
	// less than one part in lowDiskShare are free. lowDisk is eight times the default reserve.
	lowDisk      = 512 << 20
	lowDiskShare = 10
	// renewal and renewalShare say when a certificate ends soon: if less than renewal and less than
	// one part in renewalShare of its life is left. What renews certificates by itself does so with
	// at least a third left.
	renewal      = 14 * 24 * time.Hour
	renewalShare = 4
	// A warning is given once manySessions of ofSessions parts of the sessions are taken.
	manySessions, ofSessions = 4, 5
	// manyFailures is from how many failed attempts in a row on there is a warning. The first ones take
	// less than a minute.
	manyFailures = 5
	// clockApart is how far the wall clock may be behind the server's without a warning.
	clockApart = time.Minute
)

// kind is a kind of problem.
type kind struct {
	id       string
	severity Severity
	action   string
	// describe returns what is wrong; "" if this is not.
	describe func(*Condition) string
}

// kinds are all kinds of problems, errors first. docs/operations.md has the same list, and a test
// compares the two.
var kinds = []kind{
	{"stopping", Error, "Ask another server, or start this one again.", func(c *Condition) string {
		return given(c.Stopping, "The server is stopping: it takes no new calls.")
	}},
	{"read-only", Error, "When the store was moved, or is not to be moved any more, set read-only to false and send SIGHUP.", func(c *Condition) string {
		return given(c.ReadOnly, "The server is read-only (setting read-only): no change is made, and validations go on.")
	}},
	{"disk-silent", Error, "Look at the disk and at the machine's log. If the disk does not come back, move the store to another one.", func(c *Condition) string {
		return given(c.Store != nil && c.Store.Silent, "The disk of the store has not answered for a second: changes wait, validations go on.")
	}},
	{"store-down", Error, "Look for the failed commit in the log and repair the disk. The server opens the store again by itself.", func(c *Condition) string {
		return given(c.Store != nil && c.Store.Down && !c.isCluster(), "A commit failed, and the store is not open again yet: no change is made, and validations answer from what was durable before.")
	}},
	{"disk-full", Error, "Make room on the disk of the store, or make the disk larger. The server notices with the next change that needs room.", func(c *Condition) string {
		return given(c.Store != nil && c.Store.Full && !c.isCluster(), "The disk of the store is full: only changes that take something away are made.")
	}},
	{"etcd-down", Error, "Look at the members of etcd, and at the network between. The server goes on by itself once most members see each other and it reaches one of them.", func(c *Condition) string {
		return given(c.isCluster() && c.Store.Down, "Nothing can be read from etcd: nothing is changed, and no token is decided on.")
	}},
	{"etcd-exhausted", Error, "Compact and defragment etcd, or raise its quota, and disarm its alarm (etcdctl alarm disarm).", func(c *Condition) string {
		return given(c.isCluster() && c.Store.Exhausted, "etcd has no room left: no change is made, not even a revoke.")
	}},
	{"etcd-full", Error, "Compact and defragment etcd, or raise its quota, before it has no room for a revoke.", func(c *Condition) string {
		return given(c.isCluster() && c.Store.Full && !c.Store.Exhausted, "A member of etcd has used nine tenths of its quota: only changes that take something away are made.")
	}},
	{"sink-failing", Error, "Look for the reason in the log, and repair the disk of the audit sink. The lines that are missing follow by themselves.", func(c *Condition) string {
		if c.isCluster() {
			return given(c.Store.Sink.Failing, "The audit sink cannot be written: its lines follow later, and audit events stay in etcd until then.")
		}
		return given(c.Store != nil && c.Store.Sink.Failing, "The audit sink cannot be written: only changes that take something away are made.")
	}},
	{"sink-full", Error, "Make room on the disk of the audit sink, or move its old files away.", func(c *Condition) string {
		return given(c.Store != nil && c.Store.Sink.Full && !c.isCluster(), "The disk of the audit sink is full: only changes that take something away are made.")
	}},
	{"anchor-failing", Error, "Look for the reason in the log, and repair the disk of the anchor.", func(c *Condition) string {
		return given(c.Store != nil && c.Store.Anchor.Failing, "The anchor cannot be written: if the disk of the store loses changes now, nobody notices.")
	}},
	{"policy-damaged", Error, "Stop the server, run keysvc check on the store, and restore the newest copy.", func(c *Condition) string {
		return given(c.PolicyDamaged, "The policy cannot be read: no token is decided on.")
	}},
	{"records-damaged", Error, "Stop the server when you can, run keysvc check on the store to see which records, and restore the newest copy.", func(c *Condition) string {
		return given(c.Damaged > 0 && !c.PolicyDamaged, "%s cannot be read: what depends on them is refused.", count(c.Damaged, "record"))
	}},
	{"clock-jumped", Error, "Set the wall clock right if it is wrong, then start the server again.", func(c *Condition) string {
		return given(c.Clock.Jumped, "The wall clock was set forward (it is %s ahead): no key is created, and tokens that are expired by one of the two times are not decided on.",
			length(max(0, c.Clock.WallAhead)))
	}},
	{"clock-apart", Error, "Find out which server's clock is wrong, and set it right. If it was ahead, start that server again.", func(c *Condition) string {
		side := "ahead of"
		if c.Clock.Apart < 0 {
			side = "behind"
		}
		return given(c.Clock.Apart != 0, "The clocks of the other servers are %s %s this server's, and nobody knows which is right: no key is created, and tokens that are expired by one of the two times are not decided on.",
			length(c.Clock.Apart.Abs()), side)
	}},
	{"certificate-ended", Error, "Put a new certificate in the place of the old one. The server reads it by itself.", func(c *Condition) string {
		return given(c.Certificate != nil && !c.Now.Before(c.Certificate.End), "The server's certificate has ended: nobody can connect with TLS.")
	}},
	{"authority-ended", Error, "Put the authority's successor into the file that the callers file names. The server reads it by itself.", func(c *Condition) string {
		for index := range c.Authorities {
			if !c.Now.Before(c.Authorities[index].End) {
				return fmt.Sprintf("The last authority of %s has ended: their certificates are refused.", c.Authorities[index].name())
			}
		}
		return ""
	}},
	{"file-refused", Error, "Look for the mistake in the log (a changed file is not used), and mend the file. The server reads it by itself.", func(c *Condition) string {
		return given(len(c.FilesRefused) > 0, "A changed file has a mistake, and what it said before stays in use: %s.", strings.Join(c.FilesRefused, ", "))
	}},
	{"sessions-full", Error, "Raise max-sessions, or find out which service opens so many.", func(c *Condition) string {
		return given(c.Sessions.Limit > 0 && c.Sessions.Open >= c.Sessions.Limit, "All %d sessions are taken: further near-caches cannot work.", c.Sessions.Limit)
	}},
	{"store-rolled-back", Error, "Find out whether an old copy of the store was put back. If so, revoke again what was revoked since.", func(c *Condition) string {
		return given(c.Sessions.Ahead > 0, "%s knew of later changes than the store has: the store was rolled back, or a caller lies.", count(c.Sessions.Ahead, "near-cache"))
	}},
	{"disk-nearly-full", Warning, "Make room on the disk of the store, or make the disk larger.", func(c *Condition) string {
		low := c.Store != nil && !c.Store.Silent && c.Store.DiskBytes > 0 && !c.Store.Full &&
			c.Store.DiskFreeBytes < min(lowDisk, c.Store.DiskBytes/lowDiskShare)
		return given(low, "The disk of the store is nearly full: %d MiB are free.", freeMiB(c))
	}},
	{"etcd-member-silent", Warning, "Look at that member of etcd. keysvc status shows which one it is; the numbers are those of etcd-endpoints.", func(c *Condition) string {
		if !c.isCluster() || c.Store.Down {
			return ""
		}
		return given(c.silentMembers() > 0, "%d of the %d members of etcd do not answer: if more of them fail, nothing is changed or decided on.",
			c.silentMembers(), len(c.Store.Members))
	}},
	{"backups-failing", Warning, "Look for the reason in the log. Often the disk of the backups is full.", func(c *Condition) string {
		return given(c.BackupFailures > 0, "%s failed, and none was complete since.", count(c.BackupFailures, "backup"))
	}},
	{"notices-waiting", Warning, "Look for the reason in the log. Often the receiver at notice-webhook is down, or has another secret.", func(c *Condition) string {
		return given(c.NoticeFailures >= manyFailures, "%d attempts to send notices that keys end have failed, about %s.",
			c.NoticeFailures, waiting(c.NoticesWaiting))
	}},
	{"keys-held", Warning, "Find out which of them were revoked since the backup, and release the others with keysvc key release.", func(c *Condition) string {
		return given(c.States != nil && c.States.Held > 0, "Since the store was restored from a backup, keys are held: %s.", count(heldKeys(c), "key"))
	}},
	{"certificate-ends-soon", Warning, "Put a new certificate in the place of the old one. The server reads it by itself.", func(c *Condition) string {
		if c.Certificate == nil {
			return ""
		}
		left, soon := c.Certificate.endsSoon(c.Now)
		return given(soon, "The server's certificate ends in %s.", length(left))
	}},
	{"authority-ends-soon", Warning, "Add the authority's successor to the file that the callers file names. The server reads it by itself.", func(c *Condition) string {
		for index := range c.Authorities {
			if left, soon := c.Authorities[index].endsSoon(c.Now); soon {
				return fmt.Sprintf("The last authority of %s ends in %s: their certificates are then refused.", c.Authorities[index].name(), length(left))
			}
		}
		return ""
	}},
	{"sessions-nearly-full", Warning, "Raise max-sessions before the last one is taken.", func(c *Condition) string {
		many := c.Sessions.Limit > 0 && c.Sessions.Open < c.Sessions.Limit && c.Sessions.Open*ofSessions >= c.Sessions.Limit*manySessions
		return given(many, "%d of %d sessions are taken: later near-caches will not work.", c.Sessions.Open, c.Sessions.Limit)
	}},
	{"clock-behind", Warning, "Set the wall clock right. Until it is, times run by what passes.", func(c *Condition) string {
		return given(!c.Clock.Jumped && c.Clock.WallAhead < -clockApart, "The wall clock is %s behind the server's clock.", length(-c.Clock.WallAhead))
	}},
	{"purging-off", Warning, "If the wall clock is right, start the server with --allow-clock-ahead, or make any change and start it again.", func(c *Condition) string {
		return given(!c.Clock.Purges, "The server began long after the newest change, so it purges nothing and sends no notices: the wall clock may be ahead.")
	}},
}

// isCluster reports whether the store is in a cluster.
func (c *Condition) isCluster() bool { return c.Store != nil && len(c.Store.Members) > 0 }

// silentMembers returns how many members of the cluster do not answer.
func (c *Condition) silentMembers() (silent int) {
	if c.Store == nil {
		return 0
	}
	for _, member := range c.Store.Members {
		if member.Silent {
			silent++
		}
	}
	return silent
}

// given returns a text if a condition holds, else "".
func given(holds bool, format string, arguments ...any) string {
	if !holds {
		return ""
	}
	return fmt.Sprintf(format, arguments...)
}

func freeMiB(c *Condition) int64 {
	if c.Store == nil {
		return 0
	}
	return c.Store.DiskFreeBytes >> 20
}

// count returns "1 record", "2 records".
func count(number int64, singular string) string {
	if number == 1 {
		return "1 " + singular
	}
	return fmt.Sprintf("%d %ss", number, singular)
}

// waiting returns "1 notice waits", "2 notices wait".
func waiting(number int64) string {
	if number == 1 {
		return "1 notice waits"
	}
	return fmt.Sprintf("%d notices wait", number)
}

// length returns a duration for people, in the largest unit of which it has at least two.
func length(duration time.Duration) string {
	switch {
	case duration >= 48*time.Hour:
		return fmt.Sprintf("%d days", duration/(24*time.Hour))
	case duration >= 2*time.Hour:
		return fmt.Sprintf("%d hours", duration/time.Hour)
	case duration >= 2*time.Minute:
		return fmt.Sprintf("%d minutes", duration/time.Minute)
	}
	return count(int64(duration/time.Second), "second")
}

// heldKeys returns how many keys are held.
func heldKeys(c *Condition) int64 {
	if c.States == nil {
		return 0
	}
	return c.States.Held
}
