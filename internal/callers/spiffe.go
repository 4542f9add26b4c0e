package callers

import (
	"errors"
	"regexp"
	"strings"
)

// The forms of the SPIFFE-ID standard, section 2: the trust domain in lower case, and a path of
// segments that are neither empty nor dots. keysvc takes no id without a path, because that is the
// id of the domain's authority.
var (
	trustDomainPattern = regexp.MustCompile(`^[a-z0-9._-]{1,255}$`)
	segmentPattern     = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
)

// maxSPIFFE is the max. length of a SPIFFE id, in bytes (SPIFFE-ID, section 2.3).
const maxSPIFFE = 2048

func checkTrustDomain(text string) error {
	if !trustDomainPattern.MatchString(text) {
		return errors.New("allowed is a trust domain, 1 to 255 characters of a-z, 0-9 and ._-")
	}
	return nil
}

// trustDomainOf returns the trust domain of a SPIFFE id of a workload. It reports whether the text
// is one.
func trustDomainOf(id string) (domain string, ok bool) {
	rest, has := strings.CutPrefix(id, "spiffe://")
	domain, path, hasPath := strings.Cut(rest, "/")
	if !has || !hasPath || len(id) > maxSPIFFE || !trustDomainPattern.MatchString(domain) {
		return "", false
	}
	for segment := range strings.SplitSeq(path, "/") {
		if !segmentPattern.MatchString(segment) || segment == "." || segment == ".." {
			return "", false
		}
	}
	return domain, true
}

func checkSPIFFE(text string) error {
	switch _, ok := trustDomainOf(text); {
	case strings.Contains(text, "*"):
		return errWildcard
	case !ok:
		return errors.New("allowed is a SPIFFE id with a path, as in spiffe://example.org/gateway")
	}
	return nil
}
