package main

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
)

// Request is what a rule can be matched with, and what requests are counted by.
type Request struct {
	User        string `json:"user,omitempty"`
	Agent       string `json:"agent,omitempty"`
	Verb        string `json:"verb,omitempty"`
	Group       string `json:"group,omitempty"`
	Resource    string `json:"resource,omitempty"`
	Subresource string `json:"subresource,omitempty"`
	Namespace   string `json:"namespace,omitempty"`
	Name        string `json:"name,omitempty"`
}

// understand reads a request as the API server does. Its own verbs are told apart further: a server-side apply is "apply", not "patch".
func understand(request *http.Request, tokens map[string]string) Request {
	found := Request{User: user(request, tokens), Agent: request.UserAgent()}
	parts := strings.Split(strings.Trim(request.URL.Path, "/"), "/")
	switch {
	case parts[0] == "api" && len(parts) > 2:
		parts = parts[2:]
	case parts[0] == "apis" && len(parts) > 3:
		found.Group = parts[1]
		parts = parts[3:]
	default:
		found.Verb, found.Resource = strings.ToLower(request.Method), request.URL.Path
		return found
	}
	if parts[0] == "namespaces" && len(parts) > 2 && parts[2] != "status" && parts[2] != "finalize" {
		found.Namespace = parts[1]
		parts = parts[2:]
	}
	found.Resource = parts[0]
	if len(parts) > 1 {
		found.Name = parts[1]
	}
	if len(parts) > 2 {
		found.Subresource = strings.Join(parts[2:], "/")
	}
	found.Verb = verb(request, found.Name)
	return found
}

func verb(request *http.Request, name string) string {
	switch request.Method {
	case http.MethodGet, http.MethodHead:
		if watch := request.URL.Query().Get("watch"); watch == "1" || watch == "true" {
			return "watch"
		}
		if name == "" {
			return "list"
		}
		return "get"
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		if strings.HasPrefix(request.Header.Get("Content-Type"), "application/apply-patch") {
			return "apply"
		}
		return "patch"
	case http.MethodDelete:
		if name == "" {
			return "deletecollection"
		}
		return "delete"
	}
	return strings.ToLower(request.Method)
}

// user is who the token is of: a name out of the list of static tokens, or the subject of a service account's token. The signature is the API
// server's to check.
func user(request *http.Request, tokens map[string]string) string {
	token, found := strings.CutPrefix(request.Header.Get("Authorization"), "Bearer ")
	if !found {
		return "anonymous"
	}
	if name, found := tokens[token]; found {
		return name
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return "unknown"
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "unknown"
	}
	var claims struct {
		Subject string `json:"sub"`
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Subject == "" {
		return "unknown"
	}
	return claims.Subject
}

// matches tells whether a request is one that a pattern describes: fields that are empty match all, a "*" at the end matches any rest.
func (pattern Request) matches(request Request) bool {
	return matches(pattern.User, request.User) && matches(pattern.Agent, request.Agent) && matches(pattern.Verb, request.Verb) &&
		matches(pattern.Group, request.Group) && matches(pattern.Resource, request.Resource) && matches(pattern.Subresource, request.Subresource) &&
		matches(pattern.Namespace, request.Namespace) && matches(pattern.Name, request.Name)
}

// matches compares with a list of alternatives, separated by "|".
func matches(pattern, value string) bool {
	if pattern == "" {
		return true
	}
	for _, one := range strings.Split(pattern, "|") {
		if prefix, found := strings.CutSuffix(one, "*"); found && strings.HasPrefix(value, prefix) || one == value {
			return true
		}
	}
	return false
}
