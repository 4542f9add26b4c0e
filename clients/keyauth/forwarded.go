package keyauth

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The headers of Config.ForwardedHeader, as HTTP writes them.
const (
	headerForwardedFor = "X-Forwarded-For"
	headerForwarded    = "Forwarded"
	headerRealIP       = "X-Real-Ip"
)

// forwardedHeader returns the header that a text of Config.ForwardedHeader stands for, whatever its case.
func forwardedHeader(text string) (string, error) {
	for _, known := range []string{headerForwardedFor, headerForwarded, headerRealIP} {
		if text == "" || strings.EqualFold(text, known) {
			return known, nil
		}
	}
	return "", fmt.Errorf("keyauth: ForwardedHeader: is %q; allowed are X-Forwarded-For, Forwarded and X-Real-IP", text)
}

// ForwardedHeader returns the name of the one header in which trusted proxies say who the presenter is, as in
// Config.ForwardedHeader. It is for transports that fill in Request.Forwarded.
func (g *Guard) ForwardedHeader() string { return g.forwardedHeader }

// presenter returns the address that a trusted proxy says is the presenter's, given all values of the header that
// is believed.
func (g *Guard) presenter(values []string) netip.Addr {
	switch g.forwardedHeader {
	case headerForwarded:
		return forwardedElementAddress(values, g.trusted)
	case headerRealIP:
		// A proxy replaces this header, so there is one value. Two may come from two presenters.
		if len(values) != 1 {
			return netip.Addr{}
		}
		return parseForwarded(strings.Trim(values[0], " \t"))
	}
	return forwardedAddress(values, g.trusted)
}

// forwardedElementAddress returns the last address in Forwarded (RFC 7239) that is not a trusted proxy's. If all
// addresses are those of trusted proxies, it is the first. Anything that is malformed in the line of that address
// makes the address unknown, also if the presenter wrote it: text that the presenter wrote could otherwise swallow
// what the proxy appended, by a quotation mark that it does not close.
func forwardedElementAddress(values []string, trusted []netip.Prefix) (address netip.Addr) {
	for _, line := range slices.Backward(values) {
		nodes, ok := forwardedNodes(line)
		if !ok {
			return netip.Addr{}
		}
		for _, node := range slices.Backward(nodes) {
			if address = parseNode(node); !contains(trusted, address) {
				return address
			}
		}
	}
	return address
}

// forwardedNodes returns the parameter "for" of each element of one line of Forwarded; "" for an element without
// one. ok is false if the line does not have the form of RFC 7239 section 4.
func forwardedNodes(line string) (nodes []string, ok bool) {
	rest := strings.Trim(line, " \t")
	for {
		node, seen := "", make(map[string]bool)
		for {
			var name, value string
			if name, rest = cutToken(rest); name == "" || !strings.HasPrefix(rest, "=") {
				return nil, false
			}
			if value, rest, ok = cutValue(rest[1:]); !ok {
				return nil, false
			}
			// A parameter must not come twice in an element: nobody knows which of them counts.
			if name = strings.ToLower(name); seen[name] {
				return nil, false
			}
			seen[name] = true
			if name == "for" {
				node = value
			}
			if !strings.HasPrefix(rest, ";") {
				break
			}
			rest = rest[1:]
		}
		nodes = append(nodes, node)
		if rest = strings.TrimLeft(rest, " \t"); rest == "" {
			return nodes, true
		}
		if !strings.HasPrefix(rest, ",") {
			return nil, false
		}
		rest = strings.TrimLeft(rest[1:], " \t")
	}
}

// cutToken returns the token (RFC 9110 section 5.6.2) that a text begins with, and the rest.
func cutToken(text string) (token, rest string) {
	end := 0
	for end < len(text) && isTokenByte(text[end]) {
		end++
	}
	return text[:end], text[end:]
}

func isTokenByte(char byte) bool {
	return isLetterOrDigit(char) || strings.IndexByte("!#$%&'*+-.^_`|~", char) >= 0
}

func isLetterOrDigit(char byte) bool {
	return char >= 'a' && char <= 'z' || char >= 'A' && char <= 'Z' || char >= '0' && char <= '9'
}

// cutValue returns the token or quoted string that a text begins with, without its quotation marks, and the rest.
func cutValue(text string) (value, rest string, ok bool) {
	if !strings.HasPrefix(text, `"`) {
		value, rest = cutToken(text)
		return value, rest, value != ""
	}
	var inner strings.Builder
	for index := 1; index < len(text); index++ {
		switch char := text[index]; {
		case char == '"':
			return inner.String(), text[index+1:], true
		case char == '\\' && index+1 < len(text):
			index++
			inner.WriteByte(text[index])
		case char < ' ' && char != '\t', char == 0x7f, char == '\\':
			return "", "", false
		default:
			inner.WriteByte(char)
		}
	}
	return "", "", false
}

// parseNode reads a node of RFC 7239 section 6: an address of IPv4, or one of IPv6 in brackets, with or without a
// port. It returns the zero Addr for everything else, such as "unknown" and the names with _ in front that hide an
// address.
func parseNode(node string) netip.Addr {
	name := node
	if colon := strings.LastIndexByte(node, ':'); colon > strings.LastIndexByte(node, ']') {
		if name = node[:colon]; !isNodePort(node[colon+1:]) {
			return netip.Addr{}
		}
	}
	inner, bracketed := strings.CutPrefix(name, "[")
	if bracketed {
		if inner, bracketed = strings.CutSuffix(inner, "]"); !bracketed {
			return netip.Addr{}
		}
	}
	address, err := netip.ParseAddr(inner)
	if err != nil || address.Zone() != "" || address.Is4() == bracketed {
		return netip.Addr{}
	}
	return address.Unmap()
}

// isNodePort reports whether a text is a port of up to five digits, or a name with _ in front that hides one.
func isNodePort(text string) bool {
	hidden, isHidden := strings.CutPrefix(text, "_")
	for _, char := range []byte(hidden) {
		if isHidden && !isLetterOrDigit(char) && strings.IndexByte("._-", char) < 0 || !isHidden && (char < '0' || char > '9') {
			return false
		}
	}
	return hidden != "" && (isHidden || len(hidden) <= 5)
}
