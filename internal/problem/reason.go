package problem

import keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"

// Reason tells programs why a call is refused. errors.proto describes each reason.
type Reason = keysvcv1.ErrorReason

// The reasons of the API, so that domain packages need not import the API's messages.
const (
	FieldInvalid          = keysvcv1.ErrorReason_ERROR_REASON_FIELD_INVALID
	ScopeUnknown          = keysvcv1.ErrorReason_ERROR_REASON_SCOPE_UNKNOWN
	RoleUnknown           = keysvcv1.ErrorReason_ERROR_REASON_ROLE_UNKNOWN
	PageTokenInvalid      = keysvcv1.ErrorReason_ERROR_REASON_PAGE_TOKEN_INVALID
	KeyNotFound           = keysvcv1.ErrorReason_ERROR_REASON_KEY_NOT_FOUND
	MemberNotFound        = keysvcv1.ErrorReason_ERROR_REASON_MEMBER_NOT_FOUND
	ScopeBeyondRole       = keysvcv1.ErrorReason_ERROR_REASON_SCOPE_BEYOND_ROLE
	CallerNotAllowed      = keysvcv1.ErrorReason_ERROR_REASON_CALLER_NOT_ALLOWED
	CallerUnknown         = keysvcv1.ErrorReason_ERROR_REASON_CALLER_UNKNOWN
	EtagMismatch          = keysvcv1.ErrorReason_ERROR_REASON_ETAG_MISMATCH
	SourceVersionOutdated = keysvcv1.ErrorReason_ERROR_REASON_SOURCE_VERSION_OUTDATED
	ConcurrentChange      = keysvcv1.ErrorReason_ERROR_REASON_CONCURRENT_CHANGE
	PolicyChanged         = keysvcv1.ErrorReason_ERROR_REASON_POLICY_CHANGED
	RequestIDUsed         = keysvcv1.ErrorReason_ERROR_REASON_REQUEST_ID_USED
	KeyRevoked            = keysvcv1.ErrorReason_ERROR_REASON_KEY_REVOKED
	KeyExpired            = keysvcv1.ErrorReason_ERROR_REASON_KEY_EXPIRED
	KeyHeld               = keysvcv1.ErrorReason_ERROR_REASON_KEY_HELD
	MemberSuspended       = keysvcv1.ErrorReason_ERROR_REASON_MEMBER_SUSPENDED
	LimitReached          = keysvcv1.ErrorReason_ERROR_REASON_LIMIT_REACHED
	RotationInProgress    = keysvcv1.ErrorReason_ERROR_REASON_ROTATION_IN_PROGRESS
	ScopeRetired          = keysvcv1.ErrorReason_ERROR_REASON_SCOPE_RETIRED
	EpochMismatch         = keysvcv1.ErrorReason_ERROR_REASON_EPOCH_MISMATCH
	TooManyRequests       = keysvcv1.ErrorReason_ERROR_REASON_TOO_MANY_REQUESTS
	OutcomeUnknown        = keysvcv1.ErrorReason_ERROR_REASON_OUTCOME_UNKNOWN
	StoreUnavailable      = keysvcv1.ErrorReason_ERROR_REASON_STORE_UNAVAILABLE
	RevisionNotReached    = keysvcv1.ErrorReason_ERROR_REASON_REVISION_NOT_REACHED
	RecordDamaged         = keysvcv1.ErrorReason_ERROR_REASON_RECORD_DAMAGED
	Internal              = keysvcv1.ErrorReason_ERROR_REASON_INTERNAL
	NotImplemented        = keysvcv1.ErrorReason_ERROR_REASON_NOT_IMPLEMENTED
	StoreFull             = keysvcv1.ErrorReason_ERROR_REASON_STORE_FULL
	ClockUnsure           = keysvcv1.ErrorReason_ERROR_REASON_CLOCK_UNSURE
	TokenKnown            = keysvcv1.ErrorReason_ERROR_REASON_TOKEN_KNOWN
	TokensRefused         = keysvcv1.ErrorReason_ERROR_REASON_TOKENS_REFUSED
	ReadOnly              = keysvcv1.ErrorReason_ERROR_REASON_READ_ONLY
	SettingsNotStored     = keysvcv1.ErrorReason_ERROR_REASON_SETTINGS_NOT_STORED
	SchemaDiffers         = keysvcv1.ErrorReason_ERROR_REASON_SCHEMA_DIFFERS
	AuditSinkUnavailable  = keysvcv1.ErrorReason_ERROR_REASON_AUDIT_SINK_UNAVAILABLE
)
