package barrier_test

import (
	"errors"
	"testing"

	"github.com/scribe-mail/keysvc/internal/barrier"
	"github.com/scribe-mail/keysvc/internal/storage"
)

func TestNoCallJoinsAReadThatWasTaken(t *testing.T) {
	var queue barrier.Queue
	if queue.Take() != nil {
		t.Error("there is a read although no call waits")
	}
	first, send := queue.Join()
	if !send {
		t.Error("nobody would send the first read")
	}
	if again, send := queue.Join(); again != first || send {
		t.Error("two calls that wait do not share a read, or both send it")
	}
	if queue.Take() != first {
		t.Error("the read that waits is not the one to send")
	}
	second, send := queue.Join()
	if second == first || send {
		t.Error("a call joined a read that was sent, or sends another one beside it")
	}
	first.Finish(storage.Barrier{Revision: 7}, nil)
	<-first.Done()
	if got, err := first.Result(); got.Revision != 7 || err != nil {
		t.Errorf("the result is %+v, %v", got, err)
	}
	if queue.Take() != second || queue.Take() != nil {
		t.Error("the second read is not sent once")
	}
	if _, send := queue.Join(); !send {
		t.Error("nobody would send a read after all were sent")
	}
}

func TestCompareFindsAnotherHistory(t *testing.T) {
	at := func(revision int64, hash byte) storage.Barrier {
		return storage.Barrier{Revision: revision, Hash: [32]byte{hash}}
	}
	for name, test := range map[string]struct {
		read, before, now storage.Barrier
		other             bool
	}{
		"nothing new":                 {at(5, 1), at(5, 1), at(5, 1), false},
		"something new":               {at(6, 2), at(5, 1), at(5, 1), false},
		"something new that has come": {at(6, 2), at(5, 1), at(6, 2), false},
		"more has come meanwhile":     {at(6, 2), at(5, 1), at(7, 3), false},
		"behind":                      {at(4, 1), at(5, 1), at(5, 1), true},
		"another change":              {at(5, 2), at(5, 1), at(5, 1), true},
		"another change than what came meanwhile": {at(6, 2), at(5, 1), at(6, 3), true},
		"the applied hash is not known":           {at(5, 2), at(5, 0), at(5, 0), false},
		"the hash that was read is not known":     {at(5, 0), at(5, 1), at(5, 1), false},
		"behind, and no hash is known":            {at(4, 0), at(5, 0), at(5, 0), true},
	} {
		if err := barrier.Compare(test.read, test.before, test.now); errors.Is(err, storage.ErrHistoryChanged) != test.other {
			t.Errorf("%s: %v", name, err)
		}
	}
}
