package storage

// A schema is a version of the stored form. The header of a store has its schema. A store
// with a newer schema than the program's is refused with ErrNewer. A store with an older
// schema is upgraded by a backend that existed with that schema, and refused with ErrOlder by
// the other backends.
//
// A new schema needs a constant here that says what it changed, a step of each backend's
// upgrade, and a committed file of the schema before it, which a test opens.
const (
	// SchemaFirst is the form of the first stores. Hashes of secrets are digests of tokens
	// (scheme 1).
	SchemaFirst = 1
	// SchemaIntegrity ties records to the history: every record names its change, every
	// event lists the records that it put and deleted with the hashes of their payloads, heads
	// have tags (package integrity), and secrets are stored as verifiers (scheme 3). Programs
	// of SchemaFirst refuse it: they would write records that no event lists.
	SchemaIntegrity = 2
	// SchemaHeld is SchemaIntegrity with keys that are held (hold_time). Only a restore makes it, and
	// only if it holds keys: no store is upgraded to it. Programs of SchemaIntegrity refuse it: they
	// would allow held keys.
	SchemaHeld = 3

	// Schema is the schema that this program gives to new stores, and Newest the newest that it reads.
	Schema = SchemaIntegrity
	Newest = SchemaHeld
)
