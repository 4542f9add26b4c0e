package cli

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/scribe-mail/keysvc/internal/config"
	"github.com/scribe-mail/keysvc/internal/transport"
)

const (
	addressFlagName = "addr"
	tokenFlagName   = "caller-token-file"
	contextFlagName = "context"
)

// given is a value of a setting of the client, and where it came from.
type given struct{ text, origin string }

// connection is where a command connects, and how.
type connection struct {
	// values are the settings that are given, by the names of their flags. addr always is.
	values map[string]given
	// addresses are the servers, which answer alike: the first one that can be reached is asked.
	addresses []config.Address
	// secure is how the connection is secured; nil for plaintext.
	secure *transport.TLS
	// name is the host and port that the address is one of; "" if the address is given itself. The server's
	// certificate is for that name.
	name string
	// context is the name of the context in use; "" for none.
	context string
}

// connectionFlags adds the flags that say where the server is, and how to connect. Each has a
// variable, and a field in a context.
func connectionFlags(cmd *cobra.Command) {
	flags := cmd.Flags()
	for _, variable := range transport.Variables() {
		fallback := variable.Name
		if variable.Flag == addressFlagName {
			fallback += ", else ./" + transport.DefaultSocket + ", else " + transport.DefaultAddress
		}
		flags.String(variable.Flag, "", variable.Usage+" (default: "+fallback+")")
		if variable.File {
			must(cmd.MarkFlagFilename(variable.Flag))
		}
	}
}

// contextFlag adds --context.
func (a *app) contextFlag(cmd *cobra.Command) {
	cmd.Flags().String(contextFlagName, "", "the context to use; see keysvc context (default: "+transport.ContextVariable+", else the current one)")
	must(cmd.RegisterFlagCompletionFunc(contextFlagName, a.completeContexts))
}

// connection returns where the command connects, and how: as its flags say, then --context, then
// the environment, then KEYSVC_CONTEXT or the current context, then the defaults.
//
// The settings of a context are for the context's server: a token that belongs to one server is
// not sent to another. So a context that --context does not name is left alone if --addr or
// KEYSVC_ADDR is given.
func (a *app) connection(cmd *cobra.Command) (*connection, error) {
	chosen, named, err := a.chosenContext(cmd)
	if err != nil {
		return nil, err
	}
	c := &connection{values: map[string]given{}}
	if chosen != nil {
		c.context = chosen.name
	}
	for _, variable := range transport.Variables() {
		value := given{cmd.Flag(variable.Flag).Value.String(), "--" + variable.Flag}
		if !cmd.Flags().Changed(variable.Flag) {
			value = a.below(variable.Name, variable.Flag, chosen, named)
		}
		if value.text != "" {
			c.values[variable.Flag] = value
		}
	}
	if _, has := c.values[addressFlagName]; !has {
		if cmd.Flags().Changed(addressFlagName) {
			return nil, usageError(cmd, "--addr is empty, allowed are host:port and unix:///path")
		}
		network, address := transport.Discover()
		c.addresses = []config.Address{{Network: network, Target: address}}
		c.values[addressFlagName] = given{c.server(), "default"}
	} else if err := c.parseAddress(cmd); err != nil {
		return nil, err
	}
	return c, c.secureIt(cmd)
}

// below returns the value of a setting that no flag gives.
func (a *app) below(variable, name string, chosen *clientContext, named bool) given {
	inContext := given{}
	if chosen != nil {
		inContext = given{chosen.values[name], "context " + chosen.name}
	}
	if value := a.Getenv(variable); value != "" && !named {
		return given{value, variable}
	}
	return inContext
}

// chosenContext returns the context in use, nil for none, and reports whether --context names it.
func (a *app) chosenContext(cmd *cobra.Command) (chosen *clientContext, named bool, err error) {
	flag := cmd.Flag(contextFlagName)
	if flag == nil {
		return nil, false, nil
	}
	name, origin := flag.Value.String(), "--"+contextFlagName
	named = flag.Changed
	switch {
	case named:
	case cmd.Flags().Changed(addressFlagName):
		return nil, false, nil
	case a.Getenv(transport.ContextVariable) != "":
		name, origin = a.Getenv(transport.ContextVariable), transport.ContextVariable
		if a.Getenv(transport.AddressVariable) != "" {
			return nil, false, usageError(cmd, "%s and %s are both set; unset one of them, or give --context or --addr", transport.ContextVariable, transport.AddressVariable)
		}
	case a.Getenv(transport.AddressVariable) != "":
		return nil, false, nil
	}
	all, err := a.readContexts()
	if err != nil {
		return nil, false, err
	}
	if name == "" && !named {
		if name, origin = all.current, all.file; name == "" {
			return nil, false, nil
		}
	}
	if chosen = all.find(name); chosen == nil {
		return nil, false, usageError(cmd, "%s: there is no context %q%s", origin, name, all.known())
	}
	return chosen, named, nil
}

// parseAddress reads an address, or several with commas between.
func (c *connection) parseAddress(cmd *cobra.Command) error {
	value := c.values[addressFlagName]
	for text := range strings.SplitSeq(value.text, ",") {
		if text = strings.TrimSpace(text); !strings.ContainsAny(text, ":/") && text != "" {
			_, port, _ := strings.Cut(transport.DefaultAddress, ":")
			text += ":" + port // clients/keyclient adds the same port
		}
		address, err := config.ParseAddress(text)
		if err != nil {
			return usageError(cmd, "%s: %s", value.origin, err)
		}
		if host, port, err := net.SplitHostPort(address.Target); address.Network == "tcp" && (err != nil || host == "" || port == "0") {
			return usageError(cmd, "%s: %q needs a host and a port, as in keysvc.example.com:7480", value.origin, text)
		}
		if len(c.addresses) > 0 && c.addresses[0].Network != address.Network {
			return usageError(cmd, "%s: a list has unix sockets or other servers, not both", value.origin)
		}
		c.addresses = append(c.addresses, address)
	}
	return nil
}

// server returns the addresses as a flag would give them.
func (c *connection) server() string {
	var texts []string
	for _, each := range c.addresses {
		texts = append(texts, each.String())
	}
	return strings.Join(texts, ",")
}

// isUnix reports whether the server is reached by a unix socket, and isLocal whether it is certainly on this machine.
func (c *connection) isUnix() bool { return c.addresses[0].Network == "unix" }

func (c *connection) isLocal() bool {
	return !slices.ContainsFunc(c.addresses, func(each config.Address) bool { return !each.Local() })
}

// secureIt decides whether the connection is in plaintext or has TLS.
func (c *connection) secureIt(cmd *cobra.Command) error {
	secure := transport.TLS{
		CAFile: c.values["tls-ca"].text, CertFile: c.values["tls-cert"].text, KeyFile: c.values["tls-key"].text,
		ServerName: c.values["tls-server-name"].text, ServerSPIFFEID: c.values["tls-server-spiffe-id"].text,
	}
	address := c.values[addressFlagName]
	switch {
	case c.isUnix():
		for _, variable := range transport.Variables() {
			if strings.HasPrefix(variable.Flag, "tls-") && cmd.Flags().Changed(variable.Flag) {
				return usageError(cmd, "--%s is given, but %s is a unix socket, which has no TLS: its owner is checked instead", variable.Flag, c.server())
			}
		}
	case secure != (transport.TLS{}) || !c.isLocal():
		c.secure = &secure
	case c.values[tokenFlagName].text != "":
		return &commandLineError{fmt.Sprintf("%s: the caller token would go to %s (%s) in plaintext, where others could read it; give --tls-ca",
			c.values[tokenFlagName].origin, c.server(), address.origin)}
	}
	return nil
}

// credentials returns what secures the connection, and the token of the caller, if there is one.
func (c *connection) credentials(report func(error)) (*transport.Credentials, *transport.Bearer, error) {
	credentials, err := transport.New(transport.Config{TLS: c.secure, SocketOwner: c.values["socket-owner"].text, Report: report})
	if err != nil {
		return nil, nil, &commandLineError{c.blame(err)}
	}
	file := c.values[tokenFlagName]
	if file.text == "" {
		return credentials, nil, nil
	}
	bearer, err := transport.NewBearer(file.text, nil, nil)
	if err != nil {
		return nil, nil, &commandLineError{file.origin + ": " + err.Error()}
	}
	return credentials, bearer, nil
}

// blame puts before an error the settings that it is about.
func (c *connection) blame(err error) string {
	var origins []string
	for _, variable := range transport.Variables() {
		value, has := c.values[variable.Flag]
		if has && variable.File && strings.Contains(err.Error(), value.text) {
			origins = append(origins, value.origin)
		}
	}
	if len(origins) == 0 {
		return err.Error()
	}
	return strings.Join(slices.Compact(origins), ", ") + ": " + err.Error()
}

// workspaceOf returns the workspace that no flag names: that of --context, of KEYSVC_WORKSPACE,
// or of the context in use; "" if there is no such workspace.
func (a *app) workspaceOf(cmd *cobra.Command) (given, error) {
	chosen, named, err := a.chosenContext(cmd)
	variable := given{a.Getenv(workspaceVariable), workspaceVariable}
	if err != nil {
		return variable, err
	}
	inContext := given{}
	if chosen != nil {
		inContext = given{chosen.values[workspaceFlagName], "context " + chosen.name}
	}
	if variable.text == "" || named && inContext.text != "" {
		return inContext, nil
	}
	return variable, nil
}

// fillWorkspace sets --workspace if it is not given.
func (a *app) fillWorkspace(cmd *cobra.Command) error {
	flag := cmd.Flags().Lookup(workspaceFlagName)
	if flag == nil || flag.Changed || flag.Annotations[workspaceFlagName] == nil {
		return nil
	}
	workspace, err := a.workspaceOf(cmd)
	if err != nil {
		return err
	}
	return flag.Value.Set(workspace.text)
}

var errNoConfigFolder = errors.New("there is no folder for the contexts; set HOME or XDG_CONFIG_HOME")
