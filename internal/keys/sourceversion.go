package keys

import (
	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/problem"
	"github.com/scribe-mail/keysvc/internal/projection"
)

// MaxSourceVersion is the max version that a directory may give. A directory that counts nanoseconds
// since 1970 reaches it in 2096. It is below the greatest int64, which a faulty directory may send.
// If that value were stored, every correct push would be refused as outdated.
const MaxSourceVersion = 4_000_000_000_000_000_000

func checkSourceVersion(fields *problem.Fields, version *int64) {
	if version != nil && (*version < 0 || *version > MaxSourceVersion) {
		fields.Add("source_version", "is out of range; 0 to %d is allowed", int64(MaxSourceVersion))
	}
}

// checkNewer refuses a push of a member unless it is newer than the stored member and than the
// newest removal of the workspace. stored is nil if the member is not stored. same is set if the
// push changes nothing but the version; such a push may also repeat the stored version. A nil
// version is not checked.
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
		return outdated("source_version %d is the stored version of a member that differs from the push, or was removed since; "+
			"a push that changes the member needs a higher version", *version)
	}
	return nil
}

// checkRemovalNewer refuses the removal of a workspace unless it is newer than each of the
// workspace's members and than the removal before. repeated reports whether the same removal was
// made before. A nil version is not checked.
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
