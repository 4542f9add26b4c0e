package transport

// Variable is an environment variable of the clients. The command has a flag for each, and a
// field in its contexts.
type Variable struct {
	// Name is the name of the variable.
	Name string
	// Flag is the name of the flag, without dashes, and of the field of a context.
	Flag string
	// Usage describes the value, for a person.
	Usage string
	// File is set if the value is the path of a file.
	File bool
	// Empty says what holds if the variable is not set, for the documentation.
	Empty string
}

// The names of the variables.
const (
	AddressVariable         = "KEYSVC_ADDR"
	ContextVariable         = "KEYSVC_CONTEXT"
	CAVariable              = "KEYSVC_TLS_CA"
	CertVariable            = "KEYSVC_TLS_CERT"
	KeyVariable             = "KEYSVC_TLS_KEY"
	ServerNameVariable      = "KEYSVC_TLS_SERVER_NAME"
	ServerSPIFFEIDVariable  = "KEYSVC_TLS_SERVER_SPIFFE_ID"
	CallerTokenFileVariable = "KEYSVC_CALLER_TOKEN_FILE" //nolint:gosec // G101: the name of a variable, not a token
	SocketOwnerVariable     = "KEYSVC_SOCKET_OWNER"
	WorkspaceVariable       = "KEYSVC_WORKSPACE"
	TokenVariable           = "KEYSVC_TOKEN" //nolint:gosec // G101: the name of a variable, not a token
)

// DefaultSocket is where clients look for a server if they are told nothing, from the working
// directory; DefaultAddress is where they look next.
const (
	DefaultSocket  = "keysvc-data/keysvc.sock"
	DefaultAddress = "127.0.0.1:7480"
)

// Variables lists the variables of the clients that say how to connect, in the order of the
// documentation.
func Variables() []Variable {
	return []Variable{
		{Name: AddressVariable, Flag: "addr", Usage: "where the server is: host:port or unix:///path; several servers over one store with commas between", Empty: "the socket `keysvc-data/keysvc.sock` of the working directory if there is one, otherwise `127.0.0.1:7480`"},
		{Name: CAVariable, Flag: "tls-ca", File: true, Usage: "the PEM `file` with the authorities that may issue the server's certificate", Empty: "the authorities of the system"},
		{Name: CertVariable, Flag: "tls-cert", File: true, Usage: "the PEM `file` with the client's certificate, and its intermediate ones", Empty: "no client certificate"},
		{Name: KeyVariable, Flag: "tls-key", File: true, Usage: "the PEM `file` with the key of the client's certificate", Empty: "no client certificate"},
		{Name: ServerNameVariable, Flag: "tls-server-name", Usage: "the `name` in the server's certificate", Empty: "the host of the address"},
		{Name: ServerSPIFFEIDVariable, Flag: "tls-server-spiffe-id", Usage: "the SPIFFE `id` of the server, in the place of a name", Empty: "the server is known by its name"},
		{Name: CallerTokenFileVariable, Flag: "caller-token-file", File: true, Usage: "the `file` with the token that says who calls: a caller token, or that of a Kubernetes service account", Empty: "no caller token"},
		{Name: SocketOwnerVariable, Flag: "socket-owner", Usage: "the `user`, by name or number, whom a unix socket must belong to", Empty: "the own user, or root"},
	}
}
