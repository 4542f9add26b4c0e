package keyauth

import (
	"errors"
	"slices"
	"strings"

	"google.golang.org/grpc"
)

// Covers returns an error that names each method of a server, sorted, that is in no table of the Guard:
// such a method is denied to everybody. It returns nil if every method is in a table. Call it when all services are
// registered, before the server begins to serve. A *grpc.Server is such a server.
func (g *Guard) Covers(server interface {
	GetServiceInfo() map[string]grpc.ServiceInfo
},
) error {
	var missing []string
	for service, info := range server.GetServiceInfo() {
		for _, method := range info.Methods {
			name := "/" + service + "/" + method.Name
			if _, has := g.table[name]; !has {
				missing = append(missing, name)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	return errors.New("keyauth: in no table, so denied to everybody: " + strings.Join(missing, ", ") +
		"; add the table of the service to Config.Tables, for example keyauth.Health()")
}
