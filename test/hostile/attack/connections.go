package attack

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"golang.org/x/net/http2"

	keysvcv1 "github.com/scribe-mail/keysvc/gen/keysvc/v1"
)

// crowdOfConnections is how many connections an attack keeps open, if the server lets it.
const crowdOfConnections = 6000

// hold opens connections, does something with each of them, and keeps them until the server ends
// them.
func (r *Run) hold(ctx context.Context, begin func(ctx context.Context, random *rand.Rand) (*conn, error)) {
	r.crowd(ctx, crowdOfConnections, func(ctx context.Context, random *rand.Rand) error {
		c, err := begin(ctx, random)
		if err == nil {
			defer c.Close()
			c.wait(ctx)
			err = errEnded
		}
		rest(ctx, time.Second) // there are very many of them
		return err
	})
}

// silent opens connections and sends nothing.
func silent(ctx context.Context, r *Run) {
	r.crowd(ctx, crowdOfConnections, func(ctx context.Context, random *rand.Rand) error {
		return r.dribble(ctx, random, nil, 1, 0)
	})
}

// silentAfterPreface sends the preface and no settings.
func silentAfterPreface(ctx context.Context, r *Run) {
	r.crowd(ctx, crowdOfConnections, func(ctx context.Context, random *rand.Rand) error {
		return r.dribble(ctx, random, []byte(http2.ClientPreface), len(http2.ClientPreface), 0)
	})
}

// idle opens connections and says nothing after the settings.
func idle(ctx context.Context, r *Run) {
	r.hold(ctx, func(ctx context.Context, random *rand.Rand) (*conn, error) {
		return r.connect(ctx, random, manner{window: maxWindow})
	})
}

// idleAfterCall makes one call on each connection.
func idleAfterCall(ctx context.Context, r *Run) {
	headers := r.headers(keysvcv1.ValidationService_ValidateKey_FullMethodName)
	question := message(&keysvcv1.ValidateKeyRequest{Token: "none", IdentityOnly: true})
	r.hold(ctx, func(ctx context.Context, random *rand.Rand) (*conn, error) {
		c, err := r.connect(ctx, random, manner{window: maxWindow})
		if err != nil {
			return nil, err
		}
		if _, err := c.call(headers, question, true); err != nil {
			_ = c.Close()
			return nil, err
		}
		return c, nil
	})
}

// slowPrefaces sends the preface one byte at a time.
func slowPrefaces(ctx context.Context, r *Run) {
	r.crowd(ctx, crowdOfConnections, func(ctx context.Context, random *rand.Rand) error {
		return r.dribble(ctx, random, []byte(http2.ClientPreface), 1, 2*time.Second)
	})
}

// churn opens connections, makes a call on each, and closes them at once.
func churn(ctx context.Context, r *Run) {
	headers := r.headers(keysvcv1.ValidationService_ValidateKey_FullMethodName)
	question := message(&keysvcv1.ValidateKeyRequest{Token: "none", IdentityOnly: true})
	r.crowd(ctx, 64, func(ctx context.Context, random *rand.Rand) error {
		answered := make(chan struct{}, 1)
		c, err := r.connect(ctx, random, manner{window: maxWindow, ended: func(uint32) { answered <- struct{}{} }})
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.call(headers, question, true); err != nil {
			return err
		}
		if random.IntN(2) == 0 {
			return nil // does not wait for the answer
		}
		select {
		case <-answered:
		case <-c.gone:
		case <-ctx.Done():
		}
		return nil
	})
}

// knocks opens connections and closes them at once, without a word.
func knocks(ctx context.Context, r *Run) {
	r.crowd(ctx, 64, func(ctx context.Context, random *rand.Rand) error {
		raw, err := r.dial(ctx, random)
		if err != nil {
			return err
		}
		return raw.Close()
	})
}

// handshakes does the server's most expensive work, a TLS handshake, again and again.
func handshakes(ctx context.Context, r *Run) {
	r.crowd(ctx, 16, func(ctx context.Context, random *rand.Rand) error {
		c, err := r.secure(ctx, random)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// halfHandshakes sends a ClientHello and does not go on, so that the server has signed for nothing.
func halfHandshakes(ctx context.Context, r *Run) {
	hello := clientHello(r.target.TLS)
	r.crowd(ctx, crowdOfConnections, func(ctx context.Context, random *rand.Rand) error {
		return r.dribble(ctx, random, hello, len(hello), 0)
	})
}

// slowHandshakes sends a ClientHello one byte at a time.
func slowHandshakes(ctx context.Context, r *Run) {
	hello := clientHello(r.target.TLS)
	r.crowd(ctx, crowdOfConnections, func(ctx context.Context, random *rand.Rand) error {
		return r.dribble(ctx, random, hello, 1, 500*time.Millisecond)
	})
}

// dribble opens a connection, and sends a text in parts with pauses between them. Then it waits
// for the server to end the connection.
func (r *Run) dribble(ctx context.Context, random *rand.Rand, text []byte, part int, between time.Duration) error {
	raw, err := r.dial(ctx, random)
	if err != nil {
		rest(ctx, time.Second)
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer stop()
	defer raw.Close()
	for len(text) > 0 && err == nil {
		n := min(part, len(text))
		_, err = counted{raw, r}.Write(text[:n])
		text = text[n:]
		rest(ctx, between)
	}
	var buffer [512]byte
	for err == nil {
		_, err = raw.Read(buffer[:])
	}
	if ctx.Err() == nil {
		r.Counted.Ended.Add(1)
	}
	rest(ctx, time.Second)
	return err
}

// clientHello returns the first message of a TLS handshake.
func clientHello(config *tls.Config) []byte {
	ours, theirs := net.Pipe()
	defer ours.Close()
	defer theirs.Close()
	go func() { _ = tls.Client(ours, config).Handshake() }()
	text := make([]byte, 16<<10)
	n, err := theirs.Read(text)
	if err != nil {
		panic(err) // nothing else closes the pipe
	}
	return text[:n]
}

// garbage sends what is not HTTP/2.
func garbage(ctx context.Context, r *Run) {
	r.crowd(ctx, 16, func(ctx context.Context, random *rand.Rand) error {
		raw, err := r.dial(ctx, random)
		if err != nil {
			return err
		}
		defer raw.Close()
		_ = raw.SetDeadline(time.Now().Add(2 * time.Second))
		if random.IntN(2) == 0 {
			_, _ = raw.Write([]byte(http2.ClientPreface))
		}
		text := make([]byte, 1+random.IntN(4096))
		for i := range text {
			text[i] = byte(random.Uint32())
		}
		_, _ = raw.Write(text)
		if _, err = io.Copy(io.Discard, raw); !errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() == nil {
			r.Counted.Ended.Add(1)
		}
		return errEnded
	})
}
