package boltstore

import (
	"errors"
	"time"

	bolt "go.etcd.io/bbolt"
	"google.golang.org/protobuf/types/known/timestamppb"

	storagev1 "github.com/scribe-mail/keysvc/gen/keysvc/storage/v1"
)

// RepairTime sets the position's time and the last-used times to now if they are later: the
// clock was ahead when they were written. No process may serve the file. Records with such
// times must have been repaired before. RepairTime returns the number of last-used times that
// it set. Errors: those of Open and of the file system; after an error, the file may or may
// not have been repaired.
func RepairTime(path string, now time.Time) (uses int, err error) {
	file, err := openFile(path, Config{}.withDefaults())
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, file.close()) }()
	return uses, guard(func() error {
		err := file.database.Update(func(tx *bolt.Tx) error {
			uses, err = repairUsage(tx, now)
			switch isAhead := file.position.Time.After(now); {
			case err == nil && uses == 0 && !isAhead:
				return errNothingToRepair // bbolt writes pages even for a transaction without changes
			case err != nil || !isAhead:
				return err
			}
			return put(tx, bucketMeta, namePosition, &storagev1.PositionRecord{
				Revision: file.position.Revision,
				Time:     timestamppb.New(now),
			})
		})
		if errors.Is(err, errNothingToRepair) {
			return nil
		}
		return err
	})
}

// errNothingToRepair rolls a transaction back.
var errNothingToRepair = errors.New("nothing to repair")

// repairUsage sets the last-used times that are later than now to now.
func repairUsage(tx *bolt.Tx, now time.Time) (count int, err error) {
	bucket, latest := tx.Bucket([]byte(bucketUsage)), now.UnixNano()
	var names []string // a bucket must not be changed while it is walked
	err = bucket.ForEach(func(name, value []byte) error {
		if at, err := decodeUsage(string(name), value); err == nil && at.at > latest {
			names = append(names, string(name))
		}
		return nil
	})
	for _, name := range names {
		if err == nil {
			err = bucket.Put([]byte(name), frame(bucketUsage, name, []byte(number(latest))))
		}
	}
	return len(names), err
}
