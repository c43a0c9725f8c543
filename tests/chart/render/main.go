// Command render renders a Helm chart with the engine that Helm itself is made of: Go's text/template, the sprig
// functions, and ghodss/yaml. It exists for the tests, on machines that have no helm: Debian packages all of these
// libraries, so it builds without a module proxy (GO111MODULE=off GOPATH=/usr/share/gocode).
//
//	render CHART NAME NAMESPACE REVISION [VALUES.yaml ...]
//
// It prints one JSON object: template path -> rendered text ("NOTES.txt" included), with the CRDs as they are.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/ioutil"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"github.com/ghodss/yaml"
)

type object = map[string]interface{}

// files is what charts know as .Files.
type files map[string]string

func (f files) Get(name string) string { return f[name] }

// versions is what charts know as .Capabilities.APIVersions.
type versions []string

func (v versions) Has(name string) bool {
	for _, each := range v {
		if each == name {
			return true
		}
	}
	return false
}

func fail(format string, args ...interface{}) {
	fmt.Fprintf(os.Stderr, "render: "+format+"\n", args...)
	os.Exit(1)
}

func readYAML(path string) object {
	text, err := ioutil.ReadFile(path)
	if err != nil {
		fail("%v", err)
	}
	result := object{}
	if err := yaml.Unmarshal(text, &result); err != nil {
		fail("%s: %v", path, err)
	}
	return result
}

// merge lays over onto base: maps are merged, null deletes, all else replaces.
func merge(base, over object) object {
	for key, value := range over {
		inner, isMap := value.(object)
		below, wasMap := base[key].(object)
		switch {
		case value == nil:
			delete(base, key)
		case isMap && wasMap:
			base[key] = merge(below, inner)
		default:
			base[key] = value
		}
	}
	return base
}

// chartFields is Chart.yaml with the field names that templates use.
func chartFields(chart object) object {
	result := object{}
	for key, value := range chart {
		result[strings.ToUpper(key[:1])+key[1:]] = value
	}
	return result
}

func toYAML(value interface{}) string {
	text, err := yaml.Marshal(value)
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(string(text), "\n")
}

func functions(t *template.Template) template.FuncMap {
	all := sprig.TxtFuncMap()
	delete(all, "env")
	delete(all, "expandenv")
	all["toYaml"] = toYAML
	all["toJson"] = func(value interface{}) string { text, _ := json.Marshal(value); return string(text) }
	all["fromYaml"] = func(text string) object {
		result := object{}
		if err := yaml.Unmarshal([]byte(text), &result); err != nil {
			result["Error"] = err.Error()
		}
		return result
	}
	all["required"] = func(message string, value interface{}) (interface{}, error) {
		if value == nil || value == "" {
			return nil, fmt.Errorf("%s", message)
		}
		return value, nil
	}
	all["lookup"] = func(...string) object { return object{} }
	all["include"] = func(name string, data interface{}) (string, error) {
		var out bytes.Buffer
		err := t.ExecuteTemplate(&out, name, data)
		return out.String(), err
	}
	all["tpl"] = func(text string, data interface{}) (string, error) {
		clone, err := t.Clone()
		if err != nil {
			return "", err
		}
		parsed, err := clone.New("tpl").Parse(text)
		if err != nil {
			return "", err
		}
		var out bytes.Buffer
		err = parsed.Execute(&out, data)
		return out.String(), err
	}
	return all
}

func main() {
	if len(os.Args) < 5 {
		fail("usage: render CHART NAME NAMESPACE REVISION [VALUES.yaml ...]")
	}
	root, name, namespace := os.Args[1], os.Args[2], os.Args[3]
	revision, err := strconv.Atoi(os.Args[4])
	if err != nil {
		fail("REVISION: %v", err)
	}
	values := readYAML(filepath.Join(root, "values.yaml"))
	for _, path := range os.Args[5:] {
		values = merge(values, readYAML(path))
	}
	result, texts := map[string]string{}, files{}
	err = filepath.Walk(root, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		text, err := ioutil.ReadFile(path)
		relative, _ := filepath.Rel(root, path)
		texts[relative] = string(text)
		return err
	})
	if err != nil {
		fail("%v", err)
	}
	data := object{
		"Values": values,
		"Chart":  chartFields(readYAML(filepath.Join(root, "Chart.yaml"))),
		"Release": object{
			"Name": name, "Namespace": namespace, "Service": "Helm", "Revision": revision,
			"IsInstall": revision == 1, "IsUpgrade": revision > 1,
		},
		"Capabilities": object{
			"KubeVersion": object{"Version": "v1.36.0", "Major": "1", "Minor": "36", "GitVersion": "v1.36.0"},
			"APIVersions": versions{"v1", "apps/v1", "policy/v1", "rbac.authorization.k8s.io/v1"},
		},
		"Files": texts,
	}
	t := template.New("chart").Option("missingkey=zero")
	t.Funcs(functions(t))
	for path, text := range texts {
		if strings.HasPrefix(path, "templates/") {
			if _, err := t.New(path).Parse(text); err != nil {
				fail("%v", err)
			}
		}
	}
	for path, text := range texts {
		base := filepath.Base(path)
		switch {
		case strings.HasPrefix(path, "crds/"):
			result[path] = text
		case strings.HasPrefix(path, "templates/") && !strings.HasPrefix(base, "_"):
			data["Template"] = object{"Name": path, "BasePath": "templates"}
			var out bytes.Buffer
			if err := t.ExecuteTemplate(&out, path, data); err != nil {
				fail("%v", err)
			}
			result[path] = strings.ReplaceAll(out.String(), "<no value>", "")
		}
	}
	encoded, err := json.Marshal(result)
	if err != nil {
		fail("%v", err)
	}
	fmt.Println(string(encoded))
}
