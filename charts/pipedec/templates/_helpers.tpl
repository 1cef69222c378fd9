{{- /* Short enough for a label once `-operator` is added. */ -}}
{{- define "pipedec.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 54 | trimSuffix "-" -}}
{{- end -}}

{{- define "pipedec.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" -}}
{{- else if contains (include "pipedec.name" .) .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "pipedec.name" .) | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "pipedec.selector" -}}
app.kubernetes.io/name: {{ include "pipedec.name" . }}-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- /* A version as a label has it: one that `helm package --version` gave a build (0.1.0+a1b2c3) could not be one. */ -}}
{{- define "pipedec.label" -}}
{{- replace "+" "_" . | trunc 63 | trimAll "-_." -}}
{{- end -}}

{{- define "pipedec.labels" -}}
{{ include "pipedec.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: pipedec
app.kubernetes.io/version: {{ include "pipedec.label" .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ include "pipedec.label" (printf "%s-%s" .Chart.Name .Chart.Version) | quote }}
{{- end -}}

{{- define "pipedec.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (printf "%s-operator" (include "pipedec.fullname" .)) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* Where the notes and `helm test` have their pipeline: one that the operator keeps. */ -}}
{{- define "pipedec.testNamespace" -}}
{{- default (first (append .Values.watchNamespaces .Release.Namespace)) .Values.test.namespace -}}
{{- end -}}

{{- /* An image by digest, else by tag, else by the chart's appVersion: (list <image values> <root>). */ -}}
{{- define "pipedec.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository (default (index . 1).Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* What the operator may do: the least that works. Secrets are neither listed nor watched. */ -}}
{{- define "pipedec.rules" -}}
- apiGroups: [pipedec.dev]
  resources: [pipedecdeployments]
  verbs: [get, list, watch]
- apiGroups: [pipedec.dev]
  resources: [pipedecdeployments/status, pipedecdeployments/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [serviceaccounts, configmaps, services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get, create, patch, delete]
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [monitoring.coreos.com]
  resources: [podmonitors]
  verbs: [get, list, watch, create, patch, delete]
{{- end -}}

{{- define "pipedec.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "pipedec.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end -}}
