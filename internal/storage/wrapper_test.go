package storage_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/scribe-mail/keysvc/internal/storage"
	"github.com/scribe-mail/keysvc/internal/storage/storagetest"
)

// wrappers are all types outside of tests that pass calls on to a store, each with the
// behaviours that it leaves alone although it changes the method that they replace.
var wrappers = map[string][]string{
	"internal/keys/keystest.link":     nil,
	"internal/server.observedCommits": {"Fencer"}, // a fence has no time that clocks could be compared by
	"internal/server.observedSource":  nil,
	"internal/server.postponedUses":   nil,
	"internal/tracing.tracedStore":    nil,
}

// hiding are the wrappers that hide the behaviours of the store inside on purpose.
var hiding = []string{
	"internal/keys/keystest.bare", // that is what it is for
}

// noBehaviours are interfaces of package storage that no store is asked for.
var noBehaviours = []string{"Exporter", "Importer", "RefusalReader", "RefusalWriter", "Wrapper"}

// TestWrappersPassEveryBehaviourOn reads the source of this module. Every interface of package storage is a
// role, a behaviour that storagetest lists, or listed above. Every type that wraps a store is listed
// above and has Unwrap; if it changes a method, it changes the behaviours that replace that method. Nobody
// looks for a behaviour with a type assertion.
func TestWrappersPassEveryBehaviourOn(t *testing.T) {
	source := readSource(t, "../..")
	roles := source.roles()
	var behaviours []string
	for _, each := range storagetest.Behaviours {
		behaviours = append(behaviours, each.Name)
	}
	listed := slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Keys(roles)), behaviours, noBehaviours)))
	exported := source.interfaces[storagePackage]
	maps.DeleteFunc(exported, func(name string, _ *declared) bool { return !ast.IsExported(name) })
	if declared := slices.Sorted(maps.Keys(exported)); !slices.Equal(declared, listed) {
		t.Errorf("package storage declares the interfaces\n%q, and roles, behaviours and the rest are\n%q", declared, listed)
	}
	found := source.wrappers()
	known := slices.Sorted(slices.Values(slices.Concat(slices.Collect(maps.Keys(wrappers)), hiding)))
	if names := slices.Sorted(maps.Keys(found)); !slices.Equal(names, known) {
		t.Errorf("the types that wrap a store are\n%q, and the test lists\n%q", names, known)
	}
	for name, methods := range found {
		if slices.Contains(hiding, name) {
			continue
		}
		if !methods["Unwrap"] {
			t.Errorf("%s wraps a store and has no method Unwrap", name)
		}
		for _, each := range storagetest.Behaviours {
			leaves := slices.Contains(wrappers[name], each.Name)
			for method := range source.interfaces[storagePackage][each.Name].methods {
				if changes := methods[each.Replaces]; changes && !leaves && !methods[method] {
					t.Errorf("%s changes %s and not %s, which is called instead", name, each.Replaces, method)
				}
			}
		}
	}
	for _, place := range source.asserted(behaviours) {
		t.Errorf("%s: a type assertion misses what a wrapper hides; use storage.As", place)
	}
}

const storagePackage = "internal/storage"

// declared is an interface, or a struct, as it is written.
type declared struct {
	// embeds are the types of embedded fields or interfaces, and holds those of the other fields, as
	// "package.Name".
	embeds, holds []string
	methods       map[string]bool
	// signatures are the types of an interface's methods, or of those declared for a struct.
	signatures map[string]string
}

// source is the source of the module, without tests.
type source struct {
	files *token.FileSet
	trees map[string][]*ast.File // by folder
	// interfaces and structs are by folder and name.
	interfaces, structs map[string]map[string]*declared
}

func readSource(t *testing.T, root string) *source {
	t.Helper()
	s := &source{
		files: token.NewFileSet(), trees: make(map[string][]*ast.File),
		interfaces: make(map[string]map[string]*declared), structs: make(map[string]map[string]*declared),
	}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(root, path)
		switch {
		case entry.IsDir() && (name == "gen" || name != "." && strings.HasPrefix(entry.Name(), ".")):
			return filepath.SkipDir
		case entry.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go"):
			return nil
		}
		tree, err := parser.ParseFile(s.files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		folder := filepath.ToSlash(filepath.Dir(name))
		s.trees[folder] = append(s.trees[folder], tree)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for folder, trees := range s.trees {
		s.interfaces[folder], s.structs[folder] = make(map[string]*declared), make(map[string]*declared)
		for _, tree := range trees {
			s.declare(folder, tree)
		}
		for _, tree := range trees {
			s.declareMethods(folder, tree)
		}
	}
	return s
}

// declare takes the types of a file. A struct without a name gets its place as one.
func (s *source) declare(folder string, tree *ast.File) {
	names := make(map[ast.Expr]string)
	ast.Inspect(tree, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.TypeSpec:
			names[node.Type] = node.Name.Name
		case *ast.InterfaceType:
			name, named := names[node]
			if !named {
				return true
			}
			s.interfaces[folder][name] = s.fields(folder, tree, node.Methods)
		case *ast.StructType:
			name, named := names[node]
			if !named {
				name = s.files.Position(node.Pos()).String()
			}
			s.structs[folder][name] = s.fields(folder, tree, node.Fields)
		}
		return true
	})
}

// fields returns what a list of fields or methods declares.
func (s *source) fields(folder string, tree *ast.File, list *ast.FieldList) *declared {
	result := &declared{methods: make(map[string]bool), signatures: make(map[string]string)}
	for _, field := range list.List {
		switch function, is := field.Type.(*ast.FuncType); {
		case is && len(field.Names) == 1:
			result.methods[field.Names[0].Name] = true
			result.signatures[field.Names[0].Name] = signature(folder, tree, function)
		case len(field.Names) == 0:
			result.embeds = append(result.embeds, written(folder, tree, field.Type))
		default:
			result.holds = append(result.holds, written(folder, tree, field.Type))
		}
	}
	return result
}

// declareMethods takes the methods that a file declares for structs.
func (s *source) declareMethods(folder string, tree *ast.File) {
	for _, declaration := range tree.Decls {
		function, is := declaration.(*ast.FuncDecl)
		if !is || function.Recv == nil {
			continue
		}
		receiver := function.Recv.List[0].Type
		if pointer, is := receiver.(*ast.StarExpr); is {
			receiver = pointer.X
		}
		if name, is := receiver.(*ast.Ident); is && s.structs[folder][name.Name] != nil {
			s.structs[folder][name.Name].methods[function.Name.Name] = true
			s.structs[folder][name.Name].signatures[function.Name.Name] = signature(folder, tree, function.Type)
		}
	}
}

// written returns a type as text, with the folders of this module's packages.
func written(folder string, tree *ast.File, expression ast.Expr) string {
	switch expression := expression.(type) {
	case *ast.Ident:
		if expression.IsExported() {
			return folder + "." + expression.Name
		}
		return expression.Name
	case *ast.SelectorExpr:
		name, is := expression.X.(*ast.Ident)
		if !is {
			return "?"
		}
		for _, imported := range tree.Imports {
			path := strings.Trim(imported.Path.Value, `"`)
			if imported.Name == nil && strings.HasSuffix("/"+path, "/"+name.Name) || imported.Name != nil && imported.Name.Name == name.Name {
				return strings.TrimPrefix(path, "github.com/scribe-mail/keysvc/") + "." + expression.Sel.Name
			}
		}
	case *ast.StarExpr:
		return "*" + written(folder, tree, expression.X)
	case *ast.ArrayType:
		return "[]" + written(folder, tree, expression.Elt)
	case *ast.FuncType:
		return signature(folder, tree, expression)
	case *ast.IndexListExpr:
		return written(folder, tree, expression.X)
	}
	return "?"
}

// signature returns the types of parameters and results.
func signature(folder string, tree *ast.File, function *ast.FuncType) string {
	var text strings.Builder
	for _, list := range []*ast.FieldList{function.Params, function.Results} {
		text.WriteString("(")
		if list == nil {
			list = &ast.FieldList{}
		}
		for _, field := range list.List {
			for range max(1, len(field.Names)) {
				text.WriteString(written(folder, tree, field.Type) + ",")
			}
		}
		text.WriteString(")")
	}
	return text.String()
}

// roles returns the interfaces that Store is the sum of, Store included.
func (s *source) roles() map[string]*declared {
	roles := make(map[string]*declared)
	var add func(name string)
	add = func(name string) {
		if role := s.interfaces[storagePackage][name]; role != nil && roles[name] == nil {
			roles[name] = role
			for _, embedded := range role.embeds {
				add(strings.TrimPrefix(embedded, storagePackage+"."))
			}
		}
	}
	add("Store")
	return roles
}

// wrappers returns the structs that embed a store or a role of one, or hold one and have a method of a
// role, with the methods that are declared for them.
func (s *source) wrappers() map[string]map[string]bool {
	isStore := make(map[string]bool)
	signatures := make(map[string]string)
	for name, role := range s.roles() {
		isStore[storagePackage+"."+name] = true
		maps.Copy(signatures, role.signatures)
	}
	delete(signatures, "Epoch") // what uses a store may have these two without wrapping it
	delete(signatures, "Close")
	for added := true; added; { // interfaces that embed such ones, as those of packages that use a store
		added = false
		for folder, interfaces := range s.interfaces {
			for name, each := range interfaces {
				if full := folder + "." + name; !isStore[full] && slices.ContainsFunc(each.embeds, func(embedded string) bool { return isStore[embedded] }) {
					isStore[full], added = true, true
				}
			}
		}
	}
	found := make(map[string]map[string]bool)
	for folder, structs := range s.structs {
		for name, each := range structs {
			wraps := slices.ContainsFunc(each.embeds, func(embedded string) bool { return isStore[embedded] })
			for method, signature := range each.signatures {
				wraps = wraps || signatures[method] == signature && slices.ContainsFunc(each.holds, func(held string) bool { return isStore[held] })
			}
			if wraps {
				found[folder+"."+name] = each.methods
			}
		}
	}
	return found
}

// asserted returns the places of type assertions to a behaviour.
func (s *source) asserted(behaviours []string) (places []string) {
	for folder, trees := range s.trees {
		for _, tree := range trees {
			ast.Inspect(tree, func(node ast.Node) bool {
				var wanted []ast.Expr
				switch node := node.(type) {
				case *ast.TypeAssertExpr:
					if node.Type == nil { // of a type switch, whose cases follow
						return true
					}
					wanted = append(wanted, node.Type)
				case *ast.CaseClause:
					wanted = node.List
				}
				for _, each := range wanted {
					if name, of := strings.CutPrefix(written(folder, tree, each), storagePackage+"."); of && slices.Contains(behaviours, name) {
						places = append(places, s.files.Position(each.Pos()).String())
					}
				}
				return true
			})
		}
	}
	return places
}

// fencing is a store that raises fences.
type fencing struct{ storage.Fencer }

// passing is a wrapper that has a method of two behaviours.
type passing struct {
	storage.Fencer
	storage.UsageReader
	inside any
}

func (p passing) Unwrap() any { return p.inside }

// TestWrapperOffersWhatTheStoreInsideOffers: no less, no more, and its own implementation.
func TestWrapperOffersWhatTheStoreInsideOffers(t *testing.T) {
	inside := fencing{}
	outer := passing{inside: passing{inside: inside}}
	if got, has := storage.As[storage.Fencer](outer); !has || got != storage.Fencer(outer) {
		t.Errorf("the Fencer is %v, %t; want the wrapper", got, has)
	}
	if got, has := storage.As[storage.UsageReader](outer); has {
		t.Errorf("a wrapper around a store without a UsageReader is one: %v", got)
	}
	plain := struct{ storage.Wrapper }{outer}
	if got, has := storage.As[storage.Fencer](plain); !has || got != outer.inside {
		t.Errorf("through a wrapper without the method: %v, %t", got, has)
	}
	if got, has := storage.As[storage.Fencer](passing{}); has {
		t.Errorf("around nothing: %v", got)
	}
	if got, has := storage.As[storage.Fencer](struct{ storage.UsageReader }{}); has {
		t.Errorf("a store without it: %v", got)
	}
}
