{{/* Parts that the pods have in common. */}}

{{/* Flags that say where volumes live: the same for all three processes. */}}
{{- define "s3block.storeFlags" -}}
{{- with .Values.store }}
- --store=s3://{{ required "store.bucket is required: the bucket that holds the volumes" .bucket }}{{ with .prefix }}/{{ . }}{{ end }}
{{- range .endpoints }}
- --s3-endpoint={{ . }}
{{- end }}
- --s3-region={{ .region }}
{{- if ne (toString .pathStyle) "" }}
- --s3-path-style={{ .pathStyle }}
{{- end }}
{{- if .caConfigMap.name }}
- --s3-ca-file=/etc/s3block/ca/{{ .caConfigMap.key }}
{{- end }}
{{- end }}
{{- if include "s3block.secretName" . }}
- --s3-credentials-file=/etc/s3block/credentials/credentials
{{- end }}
{{- end }}

{{- define "s3block.storeMounts" -}}
{{- if .Values.store.caConfigMap.name }}
- name: ca
  mountPath: /etc/s3block/ca
  readOnly: true
{{- end }}
{{- if include "s3block.secretName" . }}
- name: credentials
  mountPath: /etc/s3block/credentials
  readOnly: true
{{- end }}
{{- end }}

{{- define "s3block.storeVolumes" -}}
{{- with .Values.store.caConfigMap }}
{{- if .name }}
- name: ca
  configMap:
    name: {{ .name }}
    items:
      - key: {{ .key }}
        path: {{ .key }}
{{- end }}
{{- end }}
{{- with include "s3block.secretName" . }}
- name: credentials
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - key: credentials
        path: credentials
{{- end }}
{{- end }}

{{- define "s3block.unprivileged" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* Asks the driver's Probe on the CSI socket and serves the answer to the kubelet. */}}
{{- define "s3block.livenessContainer" -}}
- name: liveness-probe
  image: {{ .Values.sidecars.livenessProbe.image }}
  args:
    - --csi-address=/csi/csi.sock
    - --health-port=9808
    - --probe-timeout=10s
  securityContext:
    {{- include "s3block.unprivileged" . | nindent 4 }}
  resources:
    {{- toYaml .Values.sidecars.livenessProbe.resources | nindent 4 }}
  volumeMounts:
    - name: csi
      mountPath: /csi
{{- end }}

{{- define "s3block.livenessProbe" -}}
livenessProbe:
  httpGet:
    path: /healthz
    port: healthz
  initialDelaySeconds: 10
  periodSeconds: 15
  timeoutSeconds: 12
  failureThreshold: 5
{{- end }}

{{/* Loads the kernel's nbd; max_part=0 keeps it from looking for partitions on devices that are served from here. */}}
{{- define "s3block.moduleContainer" -}}
- name: kernel-module
  image: {{ include "s3block.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [modprobe, nbd, max_part=0]
  securityContext:
    privileged: true
    readOnlyRootFilesystem: true
  resources:
    requests: { cpu: 10m, memory: 16Mi }
    limits: { memory: 64Mi }
  volumeMounts:
    - name: modules
      mountPath: /lib/modules
      readOnly: true
{{- end }}
