//go:build !linux

package sink

import (
	"errors"
	"fmt"
	"os"
)

// allocate is for systems that cannot allocate blocks and leave the length of the file as it is.
func allocate(*os.File, int64, int64) error {
	return fmt.Errorf("allocating disk space: %w", errors.ErrUnsupported)
}
