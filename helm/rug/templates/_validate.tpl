{{/* What the schema cannot say: values that do not go together. */}}
{{- define "rug.validate" -}}
{{- $values := .Values -}}
{{- $problems := list -}}
{{- $embedded := include "rug.embedded" . -}}
{{- $shared := or $values.store.url $values.store.existingSecret.name -}}
{{- if and $embedded (gt (int $values.coordinator.replicas) 1) -}}
{{- $problems = append $problems "coordinator.replicas: several coordinators elect a leader in ZooKeeper: set coordination.url or coordination.existingSecret.name, or zookeeper.enabled to try it out" -}}
{{- end -}}
{{- if and (not $embedded) (not $shared) -}}
{{- $problems = append $problems "store: with ZooKeeper coordinators share a database: set store.url or store.existingSecret.name" -}}
{{- end -}}
{{- if and $values.zookeeper.enabled (or (ne $values.coordination.url "embedded") $values.coordination.existingSecret.name) -}}
{{- $problems = append $problems "zookeeper.enabled: another ZooKeeper is named in coordination; leave one of them away" -}}
{{- end -}}
{{- range $name, $url := dict "coordination.url" $values.coordination.url "store.url" $values.store.url -}}
{{- if contains "@" (regexReplaceAll "\\?.*$" $url "") -}}
{{- $problems = append $problems (printf "%s: holds credentials, which would stand in a ConfigMap: put the URL into a secret, and name that in %s.existingSecret.name" $name (trimSuffix ".url" $name)) -}}
{{- end -}}
{{- end -}}
{{- range $part := list "coordinator" "worker" -}}
{{- $config := index $values $part "config" -}}
{{- if ne "null" (include "rug.get" (dict "of" $config "path" "coordination.url")) -}}
{{- $problems = append $problems (printf "%s.config.coordination.url: is the same for all: set coordination.url" $part) -}}
{{- end -}}
{{- if ne "null" (include "rug.get" (dict "of" $config "path" "name")) -}}
{{- $problems = append $problems (printf "%s.config.name: is the name of the pod" $part) -}}
{{- end -}}
{{- end -}}
{{- if ne "null" (include "rug.get" (dict "of" $values.coordinator.config "path" "store.url")) -}}
{{- $problems = append $problems "coordinator.config.store.url: set store.url, or store.existingSecret.name where it has credentials" -}}
{{- end -}}
{{- if ne "null" (include "rug.get" (dict "of" $values.coordinator.config "path" "telemetry.headers")) -}}
{{- $problems = append $problems "coordinator.config.telemetry.headers: are secrets: set OTEL_EXPORTER_OTLP_HEADERS in coordinator.extraEnv from a secret" -}}
{{- end -}}
{{- if ne "null" (include "rug.get" (dict "of" $values.worker.config "path" "telemetry.headers")) -}}
{{- $problems = append $problems "worker.config.telemetry.headers: are secrets: set OTEL_EXPORTER_OTLP_HEADERS in worker.extraEnv from a secret" -}}
{{- end -}}
{{- if eq $values.tls.mode "secret" -}}
{{- range $part := list "coordinator" "worker" -}}
{{- if not (index $values.tls.secrets $part) -}}
{{- $problems = append $problems (printf "tls.secrets.%s: names no secret, and tls.mode is secret" $part) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $values.worker.autoscaling.enabled (gt (int $values.worker.autoscaling.minReplicas) (int $values.worker.autoscaling.maxReplicas)) -}}
{{- $problems = append $problems "worker.autoscaling.minReplicas: is more than maxReplicas" -}}
{{- end -}}
{{- $most := ternary (int $values.worker.autoscaling.maxReplicas) (int $values.worker.replicas) $values.worker.autoscaling.enabled -}}
{{- if and (has $values.tls.mode (list "chart" "certManager")) (gt $most (int $values.tls.workerNames)) -}}
{{- $problems = append $problems (printf "tls.workerNames: must be %d at least, as many as there may be workers" $most) -}}
{{- end -}}
{{- if and $values.coordinator.ingress.enabled (not $values.coordinator.ingress.host) -}}
{{- $problems = append $problems "coordinator.ingress.host: names no host" -}}
{{- end -}}
{{- if and $values.coordinator.gateway.enabled (not $values.coordinator.gateway.parentRefs) -}}
{{- $problems = append $problems "coordinator.gateway.parentRefs: names no gateway" -}}
{{- end -}}
{{- if and $values.metrics.podMonitor.enabled $values.metrics.serviceMonitor.enabled -}}
{{- $problems = append $problems "metrics.serviceMonitor.enabled: everything would be measured twice, as metrics.podMonitor.enabled is on, too" -}}
{{- end -}}
{{- if and (eq $values.worker.zone.from "value") (not $values.worker.zone.value) -}}
{{- $problems = append $problems "worker.zone.value: names no zone, and worker.zone.from is value" -}}
{{- end -}}
{{- if $problems -}}
{{- fail (printf "\n  %s\n" (join "\n  " $problems)) -}}
{{- end -}}
{{- end -}}
