package keys

import (
	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
)

// MaxSourceVersion is the highest version that a directory may give. Nanoseconds since
// 1970 reach it in 2096; the greatest number that fits, which a mistake may well be, lies
// above it. A higher version than the directory's own would refuse all that it pushes.
const MaxSourceVersion = 4_000_000_000_000_000_000

func checkSourceVersion(fields *problem.Fields, version *int64) {
	if version != nil && (*version < 0 || *version > MaxSourceVersion) {
		fields.Add("source_version", "is out of range; 0 to %d is allowed", int64(MaxSourceVersion))
	}
}

// checkNewer refuses a push of a member that is not newer than what is known: the
// stored member, nil if there is none, and the newest removal of the workspace. same
// says that the push would change nothing, the version aside: that is allowed at the
// stored version, too.
func checkNewer(view projection.Workspace, stored *storagev1.MemberRecord, version *int64, same bool) error {
	if version == nil {
		return nil
	}
	var removal int64
	if view.Current != nil {
		removal = view.Current.RemovalSourceVersion
	}
	switch {
	case *version < removal, *version == removal && removal > 0:
		return outdated("source_version %d is not above %d, that of the workspace's removal; the push came late and is not needed",
			*version, removal)
	case *version < stored.GetSourceVersion():
		return outdated("source_version %d is behind the stored %d; the push came late and is not needed",
			*version, stored.GetSourceVersion())
	case stored != nil && *version == stored.GetSourceVersion() && !same:
		return outdated("source_version %d is the stored one, of a member that is not as the push says, or was removed since; "+
			"what is to replace it needs a higher one", *version)
	}
	return nil
}

// checkRemovalNewer refuses the removal of a workspace that is not newer than what is
// known: each of its members and the removal before. It reports whether the very same
// removal was made already.
func checkRemovalNewer(current *projection.Current, newestMember int64, version *int64) (repeated bool, err error) {
	if version == nil {
		return false, nil
	}
	known := newestMember
	if current != nil {
		if current.Removed && current.RemovalSourceVersion == *version {
			return true, nil
		}
		known = max(known, current.RemovalSourceVersion)
	}
	if *version <= known && known > 0 {
		return false, outdated("source_version %d is not above %d, the highest known of the workspace and its members; "+
			"nothing was removed", *version, known)
	}
	return false, nil
}

func outdated(format string, values ...any) error {
	return problem.New(problem.SourceVersionOutdated, format, values...)
}
