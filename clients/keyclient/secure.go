package keyclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/scribe-mail/keysvc/internal/transport"
)

// AddressVariable is the environment variable that holds the target for FromEnvironment.
const AddressVariable = transport.AddressVariable

// FromEnvironment is New with what the environment says; where the Config says something as
// well, the Config counts. The target is KEYSVC_ADDR or, without it, the socket
// ./keysvc-data/keysvc.sock if there is one, otherwise 127.0.0.1:7480. The other variables, which
// docs/client-settings.md lists, say how to connect.
//
// A unix socket is used in plaintext, after its owner was checked. Any other target is reached
// with TLS if it may be on another machine, or if one of the variables of TLS is set; otherwise
// in plaintext, if AllowPlaintext is set.
func FromEnvironment(config Config) (*Client, error) {
	target := os.Getenv(AddressVariable)
	if target == "" {
		network, address := transport.Discover()
		if target = address; network == "unix" {
			target = "unix:" + address
		}
	}
	if config.SocketOwner == "" {
		config.SocketOwner = os.Getenv(transport.SocketOwnerVariable)
	}
	if config.CallerTokenFile == "" {
		config.CallerTokenFile = os.Getenv(transport.CallerTokenFileVariable)
	}
	if full, local, _, err := parseTargets(target); err == nil && !isUnix(full) && config.TransportCredentials == nil && config.TLS == nil {
		fromVariables := TLS{
			CAFile: os.Getenv(transport.CAVariable), CertFile: os.Getenv(transport.CertVariable), KeyFile: os.Getenv(transport.KeyVariable),
			ServerName: os.Getenv(transport.ServerNameVariable), ServerSPIFFEID: os.Getenv(transport.ServerSPIFFEIDVariable),
		}
		if fromVariables != (TLS{}) || !local {
			config.TLS = &fromVariables
		}
	}
	if config.TLS != nil {
		config.AllowPlaintext = false
	}
	return New(target, config)
}

// isUnix reports whether a target is a unix socket, or a list of them.
func isUnix(target string) bool {
	return strings.HasPrefix(strings.TrimPrefix(target, listTarget), "unix:")
}

// check returns an error that names the field that is wrong.
func (c *Config) check(target string, local bool) error {
	ways := 0
	for _, set := range []bool{c.TLS != nil, c.TransportCredentials != nil, c.AllowPlaintext} {
		if set {
			ways++
		}
	}
	unix := isUnix(target) && local
	switch {
	case ways > 1:
		return errors.New("keyclient: TLS, TransportCredentials and AllowPlaintext: more than one is set; exactly one of them must be")
	case unix && c.TLS != nil:
		return fmt.Errorf("keyclient: TLS: is set for %s; a unix socket has no TLS: its owner is checked instead", target)
	case ways == 0 && !unix:
		return errors.New("keyclient: TLS: is missing, and so are TransportCredentials; to connect without TLS on this machine, set AllowPlaintext")
	case c.AllowPlaintext && !local:
		return fmt.Errorf("keyclient: AllowPlaintext: %s can be on another machine; allowed are loopback addresses, localhost and unix:///path; set TLS for others", target)
	case c.CallerTokenFile != "" && c.AllowPlaintext && !unix:
		return fmt.Errorf("keyclient: CallerTokenFile: would be sent to %s in plaintext, where others could read it; set TLS", target)
	case c.ValidationTimeout < 0:
		return fmt.Errorf("keyclient: ValidationTimeout: is %s; allowed are 0 for %s, and more", c.ValidationTimeout, defaultValidationTimeout)
	case c.Timeout < 0:
		return fmt.Errorf("keyclient: Timeout: is %s; allowed are 0 for %s, and more", c.Timeout, defaultTimeout)
	case strings.ContainsFunc(c.UserAgent, func(char rune) bool { return char < ' ' || char > '~' }):
		return errors.New("keyclient: UserAgent: has a character that is not allowed; allowed are visible ASCII and spaces")
	}
	return nil
}

func (c *Config) clock() func() time.Time {
	if c.Now != nil {
		return c.Now
	}
	return time.Now
}

// securedOptions are the options of grpc that secure a connection.
type securedOptions struct {
	// before come before the program's own options, which may override them.
	before []grpc.DialOption
	// credentials come last.
	credentials grpc.DialOption
}

func (c *Config) secured(local bool, watched *watch) (securedOptions, error) {
	var options securedOptions
	if c.CallerTokenFile != "" {
		bearer, err := transport.NewBearer(c.CallerTokenFile, watched.stale, c.clock())
		if err != nil {
			return options, fmt.Errorf("keyclient: CallerTokenFile: %w", err)
		}
		options.before = append(options.before, grpc.WithPerRPCCredentials(bearer))
	}
	if c.TransportCredentials != nil {
		options.credentials = grpc.WithTransportCredentials(c.TransportCredentials)
		return options, nil
	}
	settings := transport.Config{SocketOwner: c.SocketOwner, Report: watched.report, Stale: watched.stale, Now: c.clock()}
	field := "SocketOwner"
	if c.TLS != nil {
		secure := transport.TLS(*c.TLS)
		settings.TLS = &secure
		field = "TLS"
		if c.TLS.ServerName != "" {
			options.before = append(options.before, grpc.WithAuthority(c.TLS.ServerName))
		}
	}
	own, err := transport.New(settings)
	if err != nil {
		return options, fmt.Errorf("keyclient: %s: %w", field, err)
	}
	options.credentials = grpc.WithTransportCredentials(credentials.TransportCredentials(own))
	if local {
		// For other targets grpc's own dialler stays, which knows of proxies.
		options.before = append(options.before, grpc.WithContextDialer(dialLocal(own)))
	}
	return options, nil
}

// dialLocal dials an address of this machine, as grpc's own dialler does, and reports why that
// failed.
func dialLocal(own *transport.Credentials) func(context.Context, string) (net.Conn, error) {
	return func(ctx context.Context, address string) (net.Conn, error) {
		network := "tcp"
		if path, ok := strings.CutPrefix(address, "unix:"); ok {
			network, address = "unix", path
			if absolute, ok := strings.CutPrefix(path, "//"); ok {
				address = absolute
			}
		}
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err != nil {
			own.Report(err)
		}
		return conn, err
	}
}
