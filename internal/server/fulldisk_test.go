package server_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/server/servertest"
)

// smallDiskVariable names a folder on a file system of 128 to 512 MiB that this test may
// fill to the last byte. Without it the test is skipped; those of boltstore pretend that
// a disk is full.
//
//	mount -t tmpfs -o size=192m tmpfs /mnt/small
//	KEYSVC_SMALL_DISK=/mnt/small go test -run FullDisk -v ./internal/server
const smallDiskVariable = "KEYSVC_SMALL_DISK"

// workspaces is how many share the disk.
const workspaces = 50

// smallDisk is a real disk that a test fills.
type smallDisk struct {
	*servertest.Keysvc
	t      *testing.T
	filler string
	tokens []string
	// narrowings is how many to make, a fifth of them of the largest kind.
	narrowings int
	// tries counts the keys that were asked for on a full disk.
	tries int
	// scopes is a key's of all, most to least.
	scopes []string
	cidrs  []string
	// keys are ids to narrow, members ids to lower, suspend and remove.
	revoked, updated, rotated, finished []string
	members                             []string
}

// TestFullDiskTakesOnlyNarrowings fills a real disk: what widens is refused with a reason of its own, 10,000
// changes that narrow succeed one by one, validations do not notice, and with room all is
// as before within a second.
func TestFullDiskTakesOnlyNarrowings(t *testing.T) {
	folder := os.Getenv(smallDiskVariable)
	if folder == "" {
		t.Skipf("SKIPPED: %s names no small disk to fill", smallDiskVariable)
	}
	d := &smallDisk{t: t, filler: filepath.Join(folder, "filler"), narrowings: 10_000}
	if count, err := strconv.Atoi(os.Getenv("KEYSVC_NARROWINGS")); err == nil {
		d.narrowings = count
	}
	for _, name := range []string{d.filler, filepath.Join(folder, "keysvc.db"), filepath.Join(folder, "keysvc.db.anchor")} {
		_ = os.Remove(name)
		t.Cleanup(func() { _ = os.Remove(name) })
	}
	d.Keysvc = servertest.Start(t, servertest.Options{File: filepath.Join(folder, "keysvc.db")})
	d.prepare()
	d.fillDisk()
	created := d.createUntilFull()
	_, before := d.size()
	stop := d.validate()
	began := time.Now()
	d.narrow()
	took := time.Since(began)
	slowest, asked := stop()
	length, used := d.size()
	d.createUntilFull()
	t.Logf("%d keys more, then STORE_FULL; %d narrowings one by one in %v took %d KiB, and %d MiB of %d are left; %d validations beside, p99 %v",
		created, d.narrowings, took, (used-before)>>10, (length-used)>>20, length>>20, asked, slowest)
	if err := os.Remove(d.filler); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	for {
		err := d.create()
		if err == nil {
			break
		}
		if code, reason := reasonOf(err); code != codes.ResourceExhausted || reason != "STORE_FULL" || time.Since(began) > 5*time.Second {
			t.Fatalf("%v after there was room: %v", time.Since(began), err)
		}
	}
	t.Logf("a key was created %v after there was room", time.Since(began))
	if time.Since(began) > time.Second {
		t.Error("longer than a second")
	}
}

func reasonOf(err error) (codes.Code, string) {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok {
			return status.Code(err), info.GetReason()
		}
	}
	return status.Code(err), ""
}

func (d *smallDisk) must(_ any, err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// size returns how long the file is, and how much of it is used, as its meta pages say.
func (d *smallDisk) size() (length, used int64) {
	file, err := os.Open(d.File)
	d.must(nil, err)
	defer file.Close()
	info, err := file.Stat()
	d.must(nil, err)
	pageSize := int64(os.Getpagesize())
	for page := range int64(2) {
		var highWaterMark [8]byte
		_, err := file.ReadAt(highWaterMark[:], page*pageSize+56)
		d.must(nil, err)
		used = max(used, int64(binary.NativeEndian.Uint64(highWaterMark[:]))*pageSize)
	}
	return info.Size(), used
}

// create tries to create a key like the largest that the built-in policy allows.
func (d *smallDisk) create() error {
	d.tries++
	_, err := d.Keys.CreateKey(d.t.Context(), d.largest(fmt.Sprintf("w%d", d.tries%workspaces), "member"))
	return err
}

func (d *smallDisk) largest(workspace, member string) *keysvcv1.CreateKeyRequest {
	return &keysvcv1.CreateKeyRequest{
		WorkspaceId: workspace, MemberId: member, Name: strings.Repeat("名", 128), Scopes: d.scopes, AllowedCidrs: d.cidrs,
	}
}

// prepare makes what is narrowed later, by many callers at once.
func (d *smallDisk) prepare() {
	policy, err := d.Policies.GetPolicy(d.t.Context(), &keysvcv1.GetPolicyRequest{})
	d.must(nil, err)
	for _, resource := range policy.GetPolicy().GetResources() {
		for _, action := range resource.GetActions() {
			d.scopes = append(d.scopes, resource.GetName()+":"+action)
		}
	}
	for number := range 32 {
		d.cidrs = append(d.cidrs, fmt.Sprintf("fd00:1111:2222:3333:4444:5555:6666:%x/128", 0x1000+number))
	}
	slices.Sort(d.cidrs)
	fifth := d.narrowings / 5
	var mutex sync.Mutex
	var next atomic.Int64
	var group sync.WaitGroup
	for workspace := range workspaces {
		id := fmt.Sprintf("w%d", workspace)
		group.Go(func() {
			d.PutMember(d.t, id, "member", "admin")
			keep := func(list *[]string, ids ...string) {
				mutex.Lock()
				defer mutex.Unlock()
				*list = append(*list, id+" "+ids[0])
			}
			for range 4 {
				_, token := d.CreateKey(d.t, id, "member", "signatures:read")
				mutex.Lock()
				d.tokens = append(d.tokens, token)
				mutex.Unlock()
				key, err := d.Keys.CreateKey(d.t.Context(), d.largest(id, "member"))
				d.must(nil, err)
				keep(&d.updated, key.GetKey().GetKeyId())
				rotated, _ := d.CreateKey(d.t, id, "member", "signatures:read")
				keep(&d.rotated, rotated)
			}
			for range fifth/workspaces + 1 {
				revoked, _ := d.CreateKey(d.t, id, "member", d.scopes...)
				keep(&d.revoked, revoked)
				member := fmt.Sprintf("m%d", next.Add(1))
				d.PutMember(d.t, id, member, "admin")
				keep(&d.members, member)
			}
			for range fifth/2/workspaces + 1 {
				finished, _ := d.CreateKey(d.t, id, "member", "signatures:read")
				_, err := d.Keys.RotateKey(d.t.Context(), &keysvcv1.RotateKeyRequest{WorkspaceId: id, KeyId: finished, Overlap: durationpb.New(time.Hour)})
				d.must(nil, err)
				keep(&d.finished, finished)
			}
		})
	}
	group.Wait()
}

// fillDisk takes all room that is left.
func (d *smallDisk) fillDisk() {
	filler, err := os.Create(d.filler)
	d.must(nil, err)
	defer filler.Close()
	for size := int64(64 << 20); size > 0; {
		_, err := io.CopyN(filler, zeros{}, size)
		if errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else {
			d.must(nil, err)
		}
	}
	_ = filler.Sync()
}

type zeros struct{}

func (zeros) Read(buffer []byte) (int, error) { clear(buffer); return len(buffer), nil }

// createUntilFull creates keys until 100 in a row were refused for want of room.
func (d *smallDisk) createUntilFull() (created int) {
	for refused := 0; refused < 100; {
		err := d.create()
		if err == nil {
			created, refused = created+1, 0
			continue
		}
		if code, reason := reasonOf(err); reason == "LIMIT_REACHED" {
			d.t.Fatal("the workspace is full before the disk is")
		} else if code != codes.ResourceExhausted || reason != "STORE_FULL" {
			d.t.Fatalf("CreateKey: %v, want RESOURCE_EXHAUSTED with STORE_FULL", err)
		}
		refused++
	}
	return created
}

// validate validates until it is stopped, and then returns the 99th percentile of the
// times that it took.
func (d *smallDisk) validate() (stop func() (time.Duration, int)) {
	ctx, cancel := context.WithCancel(d.t.Context())
	var times []time.Duration
	var group sync.WaitGroup
	group.Go(func() {
		for ctx.Err() == nil {
			began := time.Now()
			answer, err := d.Validation.ValidateKey(ctx, &keysvcv1.ValidateKeyRequest{
				Token: d.tokens[len(times)%len(d.tokens)], RequiredScope: "signatures:read",
			})
			if ctx.Err() != nil {
				return
			}
			if err != nil || answer.GetDecision() != keysvcv1.Decision_DECISION_ALLOWED {
				d.t.Errorf("a validation beside a full disk: %v, %v", answer, err)
				return
			}
			times = append(times, time.Since(began))
		}
	})
	return func() (time.Duration, int) {
		cancel()
		group.Wait()
		slices.Sort(times)
		if len(times) == 0 {
			return 0, 0
		}
		return times[len(times)*99/100], len(times)
	}
}

// narrow makes the changes, one by one.
func (d *smallDisk) narrow() {
	ctx, fifth := d.t.Context(), d.narrowings/5
	split := func(name string) (workspace, id string) {
		workspace, id, _ = strings.Cut(name, " ")
		return workspace, id
	}
	for number := range fifth { // the key of a leaked token
		workspace, key := split(d.revoked[number])
		_, err := d.Keys.RevokeKey(ctx, &keysvcv1.RevokeKeyRequest{WorkspaceId: workspace, KeyId: key})
		d.must(nil, err)
	}
	for number := range fifth { // one scope or address after the other
		workspace, key := split(d.updated[number%len(d.updated)])
		round := number / len(d.updated)
		change := &keysvcv1.Key{WorkspaceId: workspace, KeyId: key, Scopes: d.scopes[:len(d.scopes)-1-round%20]}
		paths := []string{"scopes"}
		if round >= 20 {
			change.AllowedCidrs, paths = d.cidrs[:len(d.cidrs)-1-round%20], []string{"allowed_cidrs"}
		}
		_, err := d.Keys.UpdateKey(ctx, &keysvcv1.UpdateKeyRequest{Key: change, UpdateMask: &fieldmaskpb.FieldMask{Paths: paths}})
		d.must(nil, err)
	}
	for number := range fifth {
		workspace, key := split(d.rotated[number%len(d.rotated)])
		request := fmt.Sprintf("rotation-%d-%s", number, strings.Repeat("r", 40))
		_, err := d.Keys.RotateKey(ctx, &keysvcv1.RotateKeyRequest{WorkspaceId: workspace, KeyId: key, Overlap: durationpb.New(0), RequestId: &request})
		d.must(nil, err)
	}
	put := func(name, role string, state keysvcv1.MemberState) {
		workspace, member := split(name)
		_, err := d.Members.PutMember(ctx, &keysvcv1.PutMemberRequest{WorkspaceId: workspace, MemberId: member, Role: role, State: state})
		d.must(nil, err)
	}
	for number := range fifth / 2 {
		put(d.members[number], "member", keysvcv1.MemberState_MEMBER_STATE_ACTIVE)
		put(d.members[number], "member", keysvcv1.MemberState_MEMBER_STATE_SUSPENDED)
	}
	for number := range fifth / 2 {
		workspace, member := split(d.members[number])
		_, err := d.Members.RemoveMember(ctx, &keysvcv1.RemoveMemberRequest{WorkspaceId: workspace, MemberId: member})
		d.must(nil, err)
		workspace, key := split(d.finished[number])
		_, err = d.Keys.FinishRotation(ctx, &keysvcv1.FinishRotationRequest{WorkspaceId: workspace, KeyId: key})
		d.must(nil, err)
	}
}
