package keys

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
	"github.com/scribe-mail/keysvc/internal/projection"
)

// maxEnded is how many earlier incarnations the record of a member or workspace has.
const maxEnded = 16

// endedMember returns the earlier incarnations for a member who is added again; stored is the record
// so far, nil without a record. An incarnation that was not removed itself ended with its workspace,
// and is not listed.
func endedMember(stored *storagev1.MemberRecord) []*storagev1.EndedIncarnation {
	ended := stored.GetEnded()
	if stored.GetState() == storagev1.MemberRecordState_MEMBER_RECORD_STATE_REMOVED && stored.GetStateTime() != nil {
		ended = endedNow(ended, stored.GetIncarnation(), stored.GetStateTime())
	}
	return ended
}

// endedWorkspace returns the earlier incarnations for a removed workspace that is added again.
func endedWorkspace(current *projection.Current) []*storagev1.EndedIncarnation {
	return endedNow(current.Ended, current.Incarnation, timestamppb.New(current.Since()))
}

func endedNow(ended []*storagev1.EndedIncarnation, incarnation string, at *timestamppb.Timestamp) []*storagev1.EndedIncarnation {
	newest := []*storagev1.EndedIncarnation{{Incarnation: incarnation, EndTime: at}}
	return append(newest, ended[:min(len(ended), maxEnded-1)]...)
}

// endOfIncarnation returns when an incarnation ended, the zero Time if that is not known.
func endOfIncarnation(ended []*storagev1.EndedIncarnation, incarnation string) time.Time {
	index := slices.IndexFunc(ended, func(each *storagev1.EndedIncarnation) bool { return each.GetIncarnation() == incarnation })
	if index < 0 {
		return time.Time{}
	}
	return timeOf(ended[index].GetEndTime())
}

// workspaceRecord returns the record of a workspace as it is stored, without its change_sequence;
// nil for nil.
func workspaceRecord(workspaceID string, current *projection.Current) *storagev1.WorkspaceRecord {
	if current == nil {
		return nil
	}
	record := &storagev1.WorkspaceRecord{
		WorkspaceId:          workspaceID,
		Incarnation:          current.Incarnation,
		CreateTime:           timestamppb.New(current.Created),
		RemovalSourceVersion: current.RemovalSourceVersion,
		Ended:                current.Ended,
	}
	if current.Removed {
		record.RemoveTime = timestamppb.New(current.Since())
	}
	return record
}
