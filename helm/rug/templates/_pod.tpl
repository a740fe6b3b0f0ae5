{{/* Parts of pods. All of them keep to the pod security standard "restricted". */}}
{{- define "rug.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.runAsUser }}
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "rug.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "rug.podEnv" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_UID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end -}}

{{/* Variables from secrets: (dict "name" "RUG_..." "secret" {name, key}) */}}
{{- define "rug.secretEnv" -}}
- name: {{ .name }}
  valueFrom: {secretKeyRef: {name: {{ .secret.name }}, key: {{ .secret.key }}}}
{{- end -}}

{{/* Where pods run: (dict "root" $ "component" "worker" "values" $.Values.worker) */}}
{{- define "rug.scheduling" -}}
{{- $selector := dict "matchLabels" (include "rug.selector" . | fromYaml) -}}
{{- with .values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- if .values.affinity }}
affinity:
  {{- toYaml .values.affinity | nindent 2 }}
{{- else if .values.podAntiAffinity }}
affinity:
  podAntiAffinity:
    {{- if eq .values.podAntiAffinity "hard" }}
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          {{- toYaml $selector | nindent 10 }}
    {{- else }}
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            {{- toYaml $selector | nindent 12 }}
    {{- end }}
{{- end }}
topologySpreadConstraints:
  {{- if .values.topologySpreadConstraints }}
  {{- toYaml .values.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      {{- toYaml $selector | nindent 6 }}
  {{- end }}
  {{- end }}
{{- end -}}

{{/*
Probes, at the port of the metrics: gRPC probes of Kubernetes know no TLS.
  startup   the program has opened its store or joined, and serves
  liveness  its runtime still answers; nothing that depends on others
  readiness a coordinator answers calls, by itself or by passing them on; a worker has been welcomed by the leader
*/}}
{{- define "rug.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: metrics}
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 150
livenessProbe:
  httpGet: {path: /livez, port: metrics}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: metrics}
  periodSeconds: 3
  timeoutSeconds: 3
  failureThreshold: {{ .failures }}
{{- end -}}

{{/* The name of the secret with the certificate of a part: (dict "root" $ "part" "worker") */}}
{{- define "rug.tlsSecret" -}}
{{- if eq .root.Values.tls.mode "secret" -}}
{{ index .root.Values.tls.secrets .part }}
{{- else -}}
{{ include "rug.fullname" .root }}-{{ .part }}-tls
{{- end -}}
{{- end -}}

{{/* Named keys: a pod waits until all of them are there, and sees what is renewed. */}}
{{- define "rug.tlsVolume" -}}
- name: tls
  secret:
    secretName: {{ include "rug.tlsSecret" . }}
    defaultMode: 0440
    items:
      - {key: ca.crt, path: ca.crt}
      - {key: tls.crt, path: tls.crt}
      - {key: tls.key, path: tls.key}
{{- end -}}

{{/* Names of the coordinators' certificate, as JSON lists. */}}
{{- define "rug.coordinator.dnsNames" -}}
{{- $service := include "rug.coordinator" . -}}
{{- $namespace := .Release.Namespace -}}
{{- $names := list -}}
{{- range list $service (printf "*.%s-headless" $service) -}}
{{- $names = concat $names (list (printf "%s.%s.svc.%s" . $namespace $.Values.clusterDomain) (printf "%s.%s.svc" . $namespace) (printf "%s.%s" . $namespace)) -}}
{{- end -}}
{{- $names = concat $names (list $service "localhost") .Values.tls.extraDnsNames -}}
{{- if .Values.coordinator.ingress.enabled -}}{{- $names = append $names .Values.coordinator.ingress.host -}}{{- end -}}
{{- if .Values.coordinator.gateway.enabled -}}{{- $names = concat $names .Values.coordinator.gateway.hostnames -}}{{- end -}}
{{- uniq $names | toJson -}}
{{- end -}}

{{- define "rug.coordinator.ips" -}}
{{- concat (list "127.0.0.1" "::1") .Values.tls.extraIpAddresses | toJson -}}
{{- end -}}

{{/* The names that make a certificate one of these members: (dict "part" "worker" "name" "..." "count" 3) */}}
{{- define "rug.memberUris" -}}
{{- $uris := list -}}
{{- range $n := until (int .count) -}}
{{- $uris = append $uris (printf "rug://%s/%s-%d" $.part $.name $n) -}}
{{- end -}}
{{- toJson $uris -}}
{{- end -}}

{{/* Every certificate there is, as JSON: what jobs and cert-manager make alike. */}}
{{- define "rug.certificates" -}}
{{- $coordinators := max 3 (int .Values.coordinator.replicas) -}}
{{- $coordinator := dict
  "secret" (include "rug.tlsSecret" (dict "root" . "part" "coordinator"))
  "common_name" (include "rug.coordinator" .)
  "dns" (include "rug.coordinator.dnsNames" . | fromJsonArray)
  "ips" (include "rug.coordinator.ips" . | fromJsonArray)
  "uris" (include "rug.memberUris" (dict "part" "coordinator" "name" (include "rug.coordinator" .) "count" $coordinators) | fromJsonArray)
-}}
{{- $worker := dict
  "secret" (include "rug.tlsSecret" (dict "root" . "part" "worker"))
  "common_name" (include "rug.worker" .)
  "dns" (list) "ips" (list)
  "uris" (include "rug.memberUris" (dict "part" "worker" "name" (include "rug.worker" .) "count" .Values.tls.workerNames) | fromJsonArray)
-}}
{{- $admin := dict
  "secret" (include "rug.tlsSecret" (dict "root" . "part" "admin"))
  "common_name" (printf "%s-admin" (include "rug.fullname" .))
  "dns" (list) "ips" (list) "uris" (list "rug://role/admin")
-}}
{{- list $coordinator $worker $admin | toJson -}}
{{- end -}}
