using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [(name = "main", worker = .main), (name = "disk", disk = (writable = true))],
  sockets = [(name = "http", http = (), service = "main")],
);

const main :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed "dist/worker.js")],
  compatibilityDate = "2025-10-01",
  durableObjectNamespaces = [(className = "Session", uniqueKey = "session", enableSql = true)],
  durableObjectStorage = (localDisk = "disk"),
  bindings = [(name = "SESSIONS", durableObjectNamespace = "Session")],
);
