//go:build linux

package main

import "fmt"

// kind is what an operation does.
type kind int

const (
	createKey kind = iota
	rotateKey
	finishRotation
	revokeKey
	updateKey
	putMember
	applyPolicy
	getKey
	listKeys
	getMember
	getPolicy
	validateKey
	askCache
)

var kindNames = map[kind]string{
	createKey: "create", rotateKey: "rotate", finishRotation: "finish", revokeKey: "revoke", updateKey: "update",
	putMember: "put member", applyPolicy: "apply policy", getKey: "get key", listKeys: "list keys",
	getMember: "get member", getPolicy: "get policy", validateKey: "validate", askCache: "ask near-cache",
}

func (k kind) String() string { return kindNames[k] }

// MarshalText writes the name.
func (k kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// changes reports whether the operation is a change.
func (k kind) changes() bool { return k <= applyPolicy }

// reads reports whether the operation is a read for people.
func (k kind) reads() bool { return k > applyPolicy && k < validateKey }

// outcome is how a call ended.
type outcome int

const (
	// lost: the call was not answered. A change may have been made, once, or not.
	lost outcome = iota
	// done: the call was answered with OK.
	done
	// refused: the call was answered with a refusal, which changed nothing.
	refused
)

// MarshalText writes the name.
func (o outcome) MarshalText() ([]byte, error) {
	return []byte(map[outcome]string{lost: "lost", done: "done", refused: "refused"}[o]), nil
}

// Operation is one call, with its answer. Keys, tokens and members of a workspace have numbers, which count from 0.
type operation struct {
	// ID names the operation in its batch, and is the actor of the change.
	ID        int
	Workspace string `json:",omitempty"`
	Kind      kind
	Replica   int

	Key     int       // of all kinds about keys; of a validation, that of the token
	Member  int       // of createKey, putMember and getMember
	Scopes  scopes    // of createKey and updateKey
	Token   int       // that createKey and rotateKey give, or that a validation asks about
	Overlap bool      // of rotateKey
	To      memberSet // of putMember
	Version int64     // of putMember; 0 if the push has no version
	Old     int       // of applyPolicy: the variant that it replaces
	New     int       // of applyPolicy
	Asked   scopes    // of a validation: one scope

	// Call and Return are nanoseconds since the batch began.
	Call, Return int64
	Outcome      outcome
	// Status is the code of the error, Reason the reason in it.
	Status, Reason string `json:",omitempty"`
	// Revision is that of the answer. It is 0 in a refusal and in the answer of a near-cache.
	Revision int64 `json:",omitempty"`
	// KeysSeen is the answer's keys, MemberSeen its member, PolicySeen its policy.
	KeysSeen   []keyView `json:",omitempty"`
	MemberSeen memberSet
	PolicySeen int
	// Effective is that of getKey.
	Effective scopes
	// Decision is the answer of a validation.
	Decision decision

	// Made is the revision of the audit event of the change; 0 if the store has no such event.
	Made int64 `json:",omitempty"`
}

func (o *operation) actor() string { return fmt.Sprintf("o%d", o.ID) }

// String describes the operation in one line.
func (o *operation) String() string {
	text := fmt.Sprintf("%d %s", o.ID, o.Kind)
	switch o.Kind {
	case putMember, getMember:
		text += fmt.Sprintf(" m%d %v", o.Member, o.To)
	case applyPolicy:
		text += fmt.Sprintf(" %d to %d", o.Old, o.New)
	case listKeys, getPolicy:
	case validateKey, askCache:
		text += fmt.Sprintf(" key %d token %d scope %d", o.Key, o.Token, o.Asked)
	case createKey:
		text += fmt.Sprintf(" key %d of m%d scopes %d token %d", o.Key, o.Member, o.Scopes, o.Token)
	case rotateKey:
		text += fmt.Sprintf(" key %d token %d overlap %t", o.Key, o.Token, o.Overlap)
	default:
		text += fmt.Sprintf(" key %d scopes %d", o.Key, o.Scopes)
	}
	text += fmt.Sprintf(" through r%d, %.3f to %.3f s: ", o.Replica, float64(o.Call)/1e9, float64(o.Return)/1e9)
	switch o.Outcome {
	case done:
		text += fmt.Sprintf("OK at %d", o.Revision)
		switch o.Kind {
		case validateKey, askCache:
			text += fmt.Sprintf(", %v", o.Decision)
		case getMember, putMember:
			text += fmt.Sprintf(", %v", o.MemberSeen)
		case getPolicy:
			text += fmt.Sprintf(", policy %d", o.PolicySeen)
		default:
			text += fmt.Sprintf(", %+v", o.KeysSeen)
		}
	case refused:
		text += o.Status + " " + o.Reason
	default:
		text += "no answer (" + o.Status + ")"
	}
	if o.Made != 0 {
		text += fmt.Sprintf(", made at %d", o.Made)
	}
	return text
}
