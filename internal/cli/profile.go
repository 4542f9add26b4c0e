package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
	"github.com/scribe-mail/keysvc/internal/backup"
)

// profileKinds are the kinds of profiles, by the name that the runtime and pprof use.
var profileKinds = map[string]keysvcv1.ProfileKind{
	"cpu":       keysvcv1.ProfileKind_PROFILE_KIND_CPU,
	"heap":      keysvcv1.ProfileKind_PROFILE_KIND_HEAP,
	"allocs":    keysvcv1.ProfileKind_PROFILE_KIND_ALLOCS,
	"goroutine": keysvcv1.ProfileKind_PROFILE_KIND_GOROUTINE,
}

func (a *app) profileCommand() *cobra.Command {
	kinds := slices.Sorted(maps.Keys(profileKinds))
	cmd := &cobra.Command{
		Use:   "profile KIND FILE",
		Short: "Write a profile of a running server into a file",
		Long: `Write a profile of a running server into FILE, for "go tool pprof FILE". KIND is
allocs, cpu, goroutine or heap. A profile has names of functions and counts, and
no content of memory.

The caller needs the right administer for all workspaces. One profile is made at a
time.`,
		Example: `  keysvc profile cpu cpu.pprof --duration 30s
  keysvc profile heap heap.pprof`,
		Args:      positional("KIND", "FILE"),
		ValidArgs: kinds,
	}
	duration := cmd.Flags().Duration("duration", 10*time.Second, "for how long the processor is watched, 1s to 5m; only for cpu")
	return a.clientCommand(cmd, nil, func(ctx context.Context, s *session, args []string) error {
		kind, is := profileKinds[args[0]]
		if !is {
			return usageError(cmd, "KIND is %q, allowed are %s", args[0], strings.Join(kinds, ", "))
		}
		request := &keysvcv1.ProfileRequest{Kind: kind}
		if kind == keysvcv1.ProfileKind_PROFILE_KIND_CPU {
			request.Duration = durationpb.New(*duration)
		} else if cmd.Flags().Changed("duration") {
			return usageError(cmd, "--duration is for cpu only")
		}
		if _, err := os.Lstat(args[1]); err == nil {
			return &refusal{args[1] + " exists, and nothing was changed"}
		}
		return s.profile(ctx, request, args[1])
	})
}

// profile writes a profile into a file, which appears when all of it has come.
func (s *session) profile(ctx context.Context, request *keysvcv1.ProfileRequest, path string) error {
	ctx, cancel := context.WithTimeout(ctx, s.timeout+request.GetDuration().AsDuration())
	defer cancel()
	stream, err := s.debug.Profile(ctx, request)
	if err != nil {
		return err
	}
	file, err := backup.Create(filepath.Dir(path), ".keysvc-profile-")
	if err != nil {
		return err
	}
	size := 0
	for {
		response, receiveErr := stream.Recv()
		if err = receiveErr; err != nil {
			break
		}
		size += len(response.GetChunk())
		if _, err = file.Write(response.GetChunk()); err != nil {
			break
		}
	}
	if errors.Is(err, io.EOF) {
		err = file.Finish(path, false, func(string) error { return nil })
	}
	if err = errors.Join(err, file.Discard()); err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.app.Stdout, "%s  %s: go tool pprof %s\n", path, count(int64(size), "byte"), path)
	return err
}
