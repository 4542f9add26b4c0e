package storage

// A schema is a version of the stored form. A store says in its header which one it has.
// A newer one than the program's is refused with ErrNewer; an older one is upgraded by a
// backend that was ever offered with it, and refused by the others.
//
// A new version gets a constant here that says what it changed, a step of the backend's
// upgrade, and a committed file of the version before it, which a test opens.
const (
	// SchemaFirst is the form of keysvc's first stores. Hashes of secrets are the
	// digests of tokens (scheme 1). Every version opens it.
	SchemaFirst = 1
	// SchemaIntegrity ties records to the history: every record names its change, every
	// event lists what it put and deleted with the payloads' hashes, heads carry tags
	// (package integrity), and secrets are kept as verifiers (scheme 3). Programs of
	// SchemaFirst refuse it: they would write records that no event lists.
	SchemaIntegrity = 2

	// Schema is the version that this program writes.
	Schema = SchemaIntegrity
)
