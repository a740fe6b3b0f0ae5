{{/* What the source of resources needs. */}}
{{- define "rug.coordinator.rules" -}}
- apiGroups: [rug.dev]
  resources: [appliances]
  verbs: [list, watch, patch]
- apiGroups: [rug.dev]
  resources: [appliances/status]
  verbs: [patch]
# Where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [rug.dev]
  resources: [appliances/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
{{- end -}}

{{/* What the driver `kubernetes` needs where appliances are: pods, and Services and secrets of load balancers. */}}
{{- define "rug.worker.rules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
# That a load balancer was configured, for its readiness.
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
# What they print, for `rugctl logs`.
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [services]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, delete]
{{- end -}}

{{/* And in the namespace of its anchors, by which former owners are fenced. */}}
{{- define "rug.worker.anchorRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [get, create, update, delete]
{{- end -}}

{{- define "rug.worker.anchors" -}}
{{- default .Release.Namespace (include "rug.get" (dict "of" .Values.worker.config "path" "kubernetes.namespace" "or" "") | trimAll "\"") -}}
{{- end -}}

{{/* Namespaces with appliances, as JSON; none where it is all of them. */}}
{{- define "rug.worker.namespaces" -}}
{{- $config := .Values.worker.config -}}
{{- $all := or .Values.worker.rbac.clusterWide (ne "null" (include "rug.get" (dict "of" $config "path" "kubernetes.tenant_namespace"))) -}}
{{- $namespaces := list (include "rug.worker.anchors" .) -}}
{{- range $tenant, $namespace := (dict "found" (include "rug.get" (dict "of" $config "path" "kubernetes.tenants" "or" dict) | fromJson)).found -}}
{{- $namespaces = append $namespaces $namespace -}}
{{- end -}}
{{- ternary list (concat $namespaces .Values.worker.rbac.namespaces | uniq) $all | toJson -}}
{{- end -}}
