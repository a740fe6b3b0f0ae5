{{/* Names. Those of pods become names of members, those of a cron job have 52 characters at most: 38 leave room for all. */}}
{{- define "rug.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 38 | trimSuffix "-" -}}
{{- end -}}

{{- define "rug.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 38 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "rug.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 38 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "rug.coordinator" -}}{{ include "rug.fullname" . }}-coordinator{{- end -}}
{{- define "rug.worker" -}}{{ include "rug.fullname" . }}-worker{{- end -}}

{{/* Labels: rug.labels (dict "root" $ "component" "worker"), without a component for what belongs to none. */}}
{{- define "rug.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: rug
{{ include "rug.selector" . }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels of pods: without versions, so that a chart that changes nothing about a pod leaves it alone. */}}
{{- define "rug.podLabels" -}}
app.kubernetes.io/part-of: rug
{{ include "rug.selector" . }}
{{- with merge (dict) (default dict .labels) .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "rug.selector" -}}
app.kubernetes.io/name: {{ include "rug.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{/* The labels of worker pods, as a selector in one line. */}}
{{- define "rug.worker.podSelector" -}}
{{- $labels := include "rug.selector" (dict "root" . "component" "worker") | fromYaml -}}
{{- $pairs := list -}}
{{- range $key, $value := $labels -}}{{- $pairs = append $pairs (printf "%s=%s" $key $value) -}}{{- end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/* Metadata of an object: (dict "root" $ "name" "..." "component" "worker" "annotations" dict "labels" dict "namespace" "...") */}}
{{- define "rug.metadata" -}}
name: {{ .name }}
{{- if not .clusterScoped }}
namespace: {{ default .root.Release.Namespace .namespace }}
{{- end }}
labels:
  {{- include "rug.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (default dict .annotations) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The name of an image: (dict "image" {registry, repository, tag, digest} "tag" default) */}}
{{- define "rug.imageName" -}}
{{- $name := .image.repository -}}
{{- with .image.registry }}{{ $name = printf "%s/%s" . $name }}{{ end -}}
{{- if .image.digest -}}{{ printf "%s@%s" $name .image.digest }}{{- else -}}{{ printf "%s:%s" $name (default .tag .image.tag) }}{{- end -}}
{{- end -}}

{{/* The image of a component: (dict "root" $ "image" $.Values.worker.image), which wins field by field; its tag also over another digest. */}}
{{- define "rug.image" -}}
{{- $own := default dict .image -}}
{{- $image := merge (dict) $own .root.Values.image -}}
{{- if and $own.tag (not $own.digest) -}}{{- $_ := set $image "digest" "" -}}{{- end -}}
{{- include "rug.imageName" (dict "image" $image "tag" .root.Chart.AppVersion) -}}
{{- end -}}

{{- define "rug.pullPolicy" -}}
{{- (merge (dict) (default dict .image) .root.Values.image).pullPolicy -}}
{{- end -}}

{{/* Which coordinators a worker of this release waits for: those of the same image. */}}
{{- define "rug.revision" -}}
{{- include "rug.image" (dict "root" . "image" .Values.coordinator.image) | sha256sum | trunc 16 -}}
{{- end -}}

{{- define "rug.coordinator.serviceAccount" -}}
{{- default (ternary (include "rug.coordinator" .) "default" .Values.coordinator.serviceAccount.create) .Values.coordinator.serviceAccount.name -}}
{{- end -}}
{{- define "rug.worker.serviceAccount" -}}
{{- default (ternary (include "rug.worker" .) "default" .Values.worker.serviceAccount.create) .Values.worker.serviceAccount.name -}}
{{- end -}}

{{/* What is embedded: no ZooKeeper, by whatever way it would be named. */}}
{{- define "rug.embedded" -}}
{{- if and (eq .Values.coordination.url "embedded") (not .Values.coordination.existingSecret.name) (not .Values.zookeeper.enabled) -}}true{{- end -}}
{{- end -}}

{{- define "rug.coordination.url" -}}
{{- if .Values.zookeeper.enabled -}}
zookeeper://{{ include "rug.fullname" . }}-zookeeper.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:2181/rug?timeout=6
{{- else -}}
{{ .Values.coordination.url }}
{{- end -}}
{{- end -}}

{{- define "rug.scheme" -}}{{ ternary "http" "https" (eq .Values.tls.mode "disabled") }}{{- end -}}

{{- define "rug.headless" -}}
{{ include "rug.coordinator" . }}-headless.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}
{{- end -}}

{{/* Where clients in the cluster reach the API. */}}
{{- define "rug.server" -}}
{{ include "rug.scheme" . }}://{{ include "rug.coordinator" . }}.{{ .Release.Namespace }}.svc.{{ .Values.clusterDomain }}:{{ .Values.coordinator.service.port }}
{{- end -}}

{{/* Whole seconds of a duration such as 1m30s, rounded up. */}}
{{- define "rug.seconds" -}}
{{- $ms := 0 -}}
{{- range regexFindAll "[0-9]+ *[a-z]+" (toString .) -1 -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- if has $unit (list "nsec" "ns" "usec" "us") -}}{{- $ms = add $ms 1 -}}
{{- else if has $unit (list "millis" "msec" "ms") -}}{{- $ms = add $ms $number -}}
{{- else if has $unit (list "seconds" "second" "sec" "secs" "s") -}}{{- $ms = add $ms (mul $number 1000) -}}
{{- else if has $unit (list "minutes" "minute" "min" "mins" "m") -}}{{- $ms = add $ms (mul $number 60000) -}}
{{- else if has $unit (list "hours" "hour" "hr" "hrs" "h") -}}{{- $ms = add $ms (mul $number 3600000) -}}
{{- else if has $unit (list "days" "day" "d") -}}{{- $ms = add $ms (mul $number 86400000) -}}
{{- else -}}{{- fail (printf "%s: %s is no unit of time that a grace period can be made of" (toString $) $unit) -}}
{{- end -}}
{{- end -}}
{{- div (add $ms 999) 1000 -}}
{{- end -}}

{{/* A value that may be missing on the way: rug.get (dict "of" map "path" "a.b" "or" default), as JSON. */}}
{{- define "rug.get" -}}
{{- $at := .of -}}{{- $found := true -}}
{{- range splitList "." .path -}}
{{- if and $found (kindIs "map" $at) (hasKey $at .) -}}{{- $at = index $at . -}}{{- else -}}{{- $found = false -}}{{- end -}}
{{- end -}}
{{- if $found -}}{{ toJson $at }}{{- else -}}{{ toJson .or }}{{- end -}}
{{- end -}}
