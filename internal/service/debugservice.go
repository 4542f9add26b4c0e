package service

import (
	"bytes"
	"context"
	"io"
	"runtime/pprof"
	"sync"
	"time"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/callers"
	"github.com/scribe-mail/keysvc/internal/problem"
)

// The bounds of ProfileRequest.duration, and the size of ProfileResponse.chunk in bytes.
const (
	minProfile, maxProfile, defaultProfile = time.Second, 5 * time.Minute, 10 * time.Second

	profileChunk = 64 << 10
)

// lookupOf returns the name that the runtime has for a kind of profile; "" for that of the processor,
// and for unknown kinds.
func lookupOf(kind keysvcv1.ProfileKind) string {
	switch kind {
	case keysvcv1.ProfileKind_PROFILE_KIND_HEAP:
		return "heap"
	case keysvcv1.ProfileKind_PROFILE_KIND_ALLOCS:
		return "allocs"
	case keysvcv1.ProfileKind_PROFILE_KIND_GOROUTINE:
		return "goroutine"
	case keysvcv1.ProfileKind_PROFILE_KIND_UNSPECIFIED, keysvcv1.ProfileKind_PROFILE_KIND_CPU:
	}
	return ""
}

// DebugService implements keysvcv1.DebugServiceServer.
type DebugService struct {
	keysvcv1.UnimplementedDebugServiceServer
	errors Errors
	// running is held while a profile is made.
	running sync.Mutex
}

// NewDebug returns the service that shows what the process does.
func NewDebug(errors Errors) *DebugService { return &DebugService{errors: errors} }

// Profile implements keysvcv1.DebugServiceServer.
func (s *DebugService) Profile(request *keysvcv1.ProfileRequest, stream keysvcv1.DebugService_ProfileServer) error {
	ctx := stream.Context()
	made, err := s.profile(ctx, request)
	if err != nil {
		return s.errors.Status(ctx, err)
	}
	for chunk := make([]byte, profileChunk); ; {
		read, err := made.Read(chunk)
		if err == io.EOF {
			return nil
		}
		if err := stream.Send(&keysvcv1.ProfileResponse{Chunk: chunk[:read]}); err != nil {
			return err
		}
	}
}

func (s *DebugService) profile(ctx context.Context, request *keysvcv1.ProfileRequest) (*bytes.Buffer, error) {
	if !callers.FromContext(ctx).For(callers.Needs(keysvcv1.DebugService_Profile_FullMethodName)).IsAll() {
		return nil, problem.New(keysvcv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED, "a profile needs the right administer for all workspaces")
	}
	duration, err := profileDuration(request)
	if err != nil {
		return nil, err
	}
	if !s.running.TryLock() {
		return nil, problem.New(keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS, "another profile is being made; try again after it")
	}
	defer s.running.Unlock()
	made := &bytes.Buffer{}
	if name := lookupOf(request.GetKind()); name != "" {
		return made, pprof.Lookup(name).WriteTo(made, 0)
	}
	if err := pprof.StartCPUProfile(made); err != nil { // something else in the process makes one
		return nil, problem.New(keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS, "another profile is being made; try again after it")
	}
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		err = ctx.Err()
	}
	pprof.StopCPUProfile()
	return made, err
}

// profileDuration checks a request, and returns for how long the processor is watched.
func profileDuration(request *keysvcv1.ProfileRequest) (time.Duration, error) {
	var fields problem.Fields
	kind, duration := request.GetKind(), defaultProfile
	if isCPU := kind == keysvcv1.ProfileKind_PROFILE_KIND_CPU; !isCPU && lookupOf(kind) == "" {
		fields.Add("kind", "is %s, allowed are PROFILE_KIND_CPU, _HEAP, _ALLOCS and _GOROUTINE", kind)
	} else if given := request.GetDuration(); given != nil {
		duration = given.AsDuration()
		switch {
		case !isCPU:
			fields.Add("duration", "is set, which only PROFILE_KIND_CPU allows")
		case given.CheckValid() != nil || duration < minProfile || duration > maxProfile:
			fields.Add("duration", "is %s, allowed are %s to %s", duration, minProfile, maxProfile)
		}
	}
	return duration, fields.Err()
}
