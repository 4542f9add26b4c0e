package server_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/keys/keystest"
	"github.com/scribe-mail/keysvc/internal/server"
	"github.com/scribe-mail/keysvc/internal/storage/boltstore"
)

// TestRepairClockSetsFutureTimesBack makes a store as a server leaves it that ran while the
// clock was 400 days ahead. After the repair no key lives longer than it was given, and the
// server starts.
func TestRepairClockSetsFutureTimesBack(t *testing.T) {
	t.Parallel()
	const ahead, day = 400 * 24 * time.Hour, 24 * time.Hour
	clock := &testClock{now: testTime}
	run := func(what func(b *bench), file string) string {
		b := start(t, options{clock: clock, file: file})
		what(b)
		b.stop(t, patience)
		if err := b.store.Close(); err != nil {
			t.Fatal(err)
		}
		return b.file
	}
	var old, rotated, week, year, used *keysvcv1.CreateKeyResponse
	var rotation *keysvcv1.RotateKeyResponse
	file := run(func(b *bench) {
		b.putMember(t, "acme", "ann", "owner")
		b.putMember(t, "acme", "bob", "owner")
		old, rotated, used = b.create(t, "acme", "ann", "signatures:read"), b.create(t, "acme", "ann", "signatures:read"), b.create(t, "acme", "ann", "signatures:read")
	}, "")
	clock.pass(ahead - 60*day)
	// The older keys are expired at that time, so the clock goes there in two steps.
	run(func(b *bench) {
		var err error
		if rotation, err = b.keys.RotateKey(testContext(t), &keysvcv1.RotateKeyRequest{
			WorkspaceId: "acme", KeyId: rotated.GetKey().GetKeyId(), Overlap: durationpb.New(7 * day),
		}); err != nil {
			t.Fatal(err)
		}
		b.expectAllowed(t, used.GetToken(), "signatures:read")
	}, file)
	clock.pass(60 * day)
	run(func(b *bench) {
		week, year = b.createFor(t, 7*day), b.create(t, "acme", "ann", "signatures:read")
		if _, err := b.keys.RevokeKey(testContext(t), &keysvcv1.RevokeKeyRequest{WorkspaceId: "acme", KeyId: used.GetKey().GetKeyId()}); err != nil {
			t.Fatal(err)
		}
		b.push(t, "acme", "bob", "member", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
		b.putMember(t, "new", "eve", "owner")
	}, file)
	clock.pass(time.Minute - ahead)

	repair := func(apply bool) string {
		t.Helper()
		var out bytes.Buffer
		if err := server.RepairClockAt(t.Context(), file, server.Outside{}, apply, &out, clock.Now); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	counts := "keys          4\nmembers       2\nworkspaces    1\n"
	before := positionOf(t, file)
	if out := repair(false); !strings.Contains(out, counts) || !strings.Contains(out, "nothing was changed") {
		t.Errorf("it says:\n%s", out)
	}
	if after := positionOf(t, file); after != before || !strings.Contains(after, "2028") {
		t.Errorf("the position was %s and is %s", before, after)
	}
	if out := repair(true); !strings.Contains(out, counts) || !strings.Contains(out, "last-used     1\n") {
		t.Errorf("it says:\n%s", out)
	}
	if out := repair(true); !strings.Contains(out, "keys          0\nmembers       0\nworkspaces    0\nlast-used     0\n") {
		t.Errorf("the second time it says:\n%s", out)
	}
	run(func(b *bench) {
		now := clock.Now()
		until := func(what string, key *keysvcv1.Key, life time.Duration) {
			t.Helper()
			got, err := b.keys.GetKey(testContext(t), &keysvcv1.GetKeyRequest{WorkspaceId: "acme", KeyId: key.GetKeyId()})
			if err != nil {
				t.Fatal(err)
			}
			if left := got.GetKey().GetExpireTime().AsTime().Sub(now); left > life || left < life-time.Hour {
				t.Errorf("%s lives for %s, want %s", what, left, life)
			}
			if at := got.GetKey().GetLastUsedTime(); at != nil && at.AsTime().After(now) {
				t.Errorf("%s was used last at %s", what, at.AsTime())
			}
		}
		until("a key of before", old.GetKey(), 366*day) // there is a 29 February
		until("a key made for a week", week.GetKey(), 7*day)
		until("a key made for a year", year.GetKey(), 365*day)
		until("a key that was rotated", rotated.GetKey(), 366*day)
		for _, token := range []string{old.GetToken(), week.GetToken(), year.GetToken(), rotation.GetToken(), rotated.GetToken()} {
			b.expectAllowed(t, token, "signatures:read")
		}
		b.expectRefused(t, used.GetToken(), "signatures:read", keysvcv1.Reason_REASON_KEY_REVOKED)
		b.create(t, "acme", "ann", "signatures:read")
		clock.pass(7*day + time.Hour) // the overlap, and the week
		b.expectRefused(t, week.GetToken(), "signatures:read", keysvcv1.Reason_REASON_KEY_EXPIRED)
		b.expectRefused(t, rotated.GetToken(), "signatures:read", keysvcv1.Reason_REASON_KEY_INVALID)
		b.expectAllowed(t, rotation.GetToken(), "signatures:read")
	}, file)
	keystest.Bolt{Path: file}.Check(t)
}

// TestRepairClockMakesNoFile: a wrong path is an error.
func TestRepairClockMakesNoFile(t *testing.T) {
	t.Parallel()
	if err := server.RepairClock(t.Context(), t.TempDir()+"/none.db", server.Outside{}, true, &bytes.Buffer{}); err == nil {
		t.Error("there is no such file")
	}
}

// positionOf returns the position of a store's file.
func positionOf(t *testing.T, file string) string {
	t.Helper()
	report, err := boltstore.Check(context.Background(), file)
	if err != nil || len(report.Problems) > 0 {
		t.Fatal(err, report.Problems)
	}
	return fmt.Sprint(report.Position.Revision, " ", report.Position.Time)
}
