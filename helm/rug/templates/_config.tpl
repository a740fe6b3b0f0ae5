{{/*
TOML of a map. Helm's own toToml writes numbers of values files as floats in some versions (1.0 where 1 was written), which settings that
count something refuse; this one writes numbers as they are.
*/}}
{{- define "rug.toml" -}}
{{- $path := default "" .path -}}
{{- $of := .of -}}
{{- range $key := keys $of | sortAlpha -}}
{{- $value := index $of $key -}}
{{- if not (or (kindIs "map" $value) (include "rug.isTables" $value) (kindIs "invalid" $value)) }}
{{ include "rug.tomlKey" $key }} = {{ toJson $value }}
{{- end -}}
{{- end -}}
{{- range $key := keys $of | sortAlpha -}}
{{- $value := index $of $key -}}
{{- $name := include "rug.tomlKey" $key -}}
{{- $below := ternary $name (printf "%s.%s" $path $name) (eq $path "") -}}
{{- if kindIs "map" $value }}

[{{ $below }}]
{{- include "rug.toml" (dict "of" $value "path" $below) }}
{{- else if include "rug.isTables" $value }}
{{- range $value }}

[[{{ $below }}]]
{{- include "rug.toml" (dict "of" . "path" $below) }}
{{- end }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Names of headers, labels and tenants can have characters that names of settings have not. */}}
{{- define "rug.tomlKey" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . }}{{ . }}{{ else }}{{ toJson . }}{{ end -}}
{{- end -}}

{{- define "rug.isTables" -}}
{{- if and (kindIs "slice" .) . -}}{{- if kindIs "map" (first .) -}}true{{- end -}}{{- end -}}
{{- end -}}

{{/* TLS files of a component, as settings. */}}
{{- define "rug.tlsFiles" -}}
ca: /etc/rug/tls/ca.crt
cert: /etc/rug/tls/tls.crt
key: /etc/rug/tls/tls.key
{{- end -}}

{{/* Settings of coordinators: what values say, over what follows from the chart. As YAML. */}}
{{- define "rug.coordinator.config" -}}
{{- $values := .Values -}}
{{- $own := dict
  "cluster" (include "rug.fullname" .)
  "listen" (printf "%s:7470" $values.bindAddress)
  "state_dir" "/var/lib/rug/state"
  "coordination" (dict "group" $values.coordination.group)
  "metrics" (dict "listen" (printf "%s:%d" $values.bindAddress (int $values.metrics.port)) "insecure" true)
-}}
{{- if not $values.coordination.existingSecret.name -}}
{{- $_ := set $own.coordination "url" (include "rug.coordination.url" .) -}}
{{- end -}}
{{- $workers := dict "stateful_set" (include "rug.worker" .) "selector" (include "rug.worker.podSelector" .) -}}
{{- $kubernetes := ternary (dict "workers" $workers) dict $values.witness.enabled -}}
{{- if $values.customResources.enabled -}}
{{- $kubernetes = merge $kubernetes (dict "appliances" true "namespaces" $values.customResources.namespaces) -}}
{{- end -}}
{{- if $kubernetes -}}{{- $_ := set $own "kubernetes" $kubernetes -}}{{- end -}}
{{- if $values.store.url -}}{{- $_ := set $own "store" (dict "url" $values.store.url) -}}{{- end -}}
{{- if eq $values.tls.mode "disabled" -}}
{{- $_ := set $own "insecure" true -}}
{{- else -}}
{{- $_ := set $own "tls" (include "rug.tlsFiles" . | fromYaml) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $own (deepCopy $values.coordinator.config)) -}}
{{- end -}}

{{/* Settings of workers. */}}
{{- define "rug.worker.config" -}}
{{- $values := .Values -}}
{{- $own := dict
  "state_dir" "/var/lib/rug/state"
  "coordination" (dict "group" $values.coordination.group)
  "metrics" (dict "listen" (printf "%s:%d" $values.bindAddress (int $values.metrics.port)) "insecure" true)
-}}
{{- if $values.witness.enabled -}}{{- $_ := set $own "termination_log" "/dev/termination-log" -}}{{- end -}}
{{- if not $values.coordination.existingSecret.name -}}
{{- $_ := set $own.coordination "url" (include "rug.coordination.url" .) -}}
{{- end -}}
{{- if include "rug.embedded" . -}}
{{- $address := printf "%s://%s-0.%s:7470" (include "rug.scheme" .) (include "rug.coordinator" .) (include "rug.headless" .) -}}
{{- $_ := set $own "session" (dict "coordinators" (list $address)) -}}
{{- end -}}
{{- if ne $values.tls.mode "disabled" -}}
{{- $_ := set $own "tls" (include "rug.tlsFiles" . | fromYaml) -}}
{{- end -}}
{{- if has "kubernetes" (default (list "kubernetes") $values.worker.config.drivers) -}}
{{- $_ := set $own "kubernetes" (dict "appliance_image" (include "rug.image" (dict "root" .)) "image_pull_secrets" $values.imagePullSecrets) -}}
{{- end -}}
{{- toYaml (mergeOverwrite $own (deepCopy $values.worker.config)) -}}
{{- end -}}

{{/* How long a worker may take to stop: what it hands over, and the margin. */}}
{{- define "rug.worker.gracePeriod" -}}
{{- $drain := include "rug.get" (dict "of" .Values.worker.config "path" "session.drain_timeout" "or" "30s") -}}
{{- add (include "rug.seconds" (trimAll "\"" $drain)) (int .Values.worker.terminationMargin) -}}
{{- end -}}

{{- define "rug.coordinator.gracePeriod" -}}
{{- $drain := include "rug.get" (dict "of" .Values.coordinator.config "path" "connections.drain_timeout" "or" "3s") -}}
{{- add (include "rug.seconds" (trimAll "\"" $drain)) (int .Values.coordinator.terminationMargin) -}}
{{- end -}}
