using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [(name = "main", worker = .main), (name = "disk", disk = (writable = true))],
  sockets = [(name = "http", http = (), service = "main")],
);

const main :Workerd.Worker = (
  modules = [
    (name = "loader.js", esModule = embed "loader.js"),
    (name = "machine.js", text = embed "dist/worker.js"),
  ],
  compatibilityDate = "2025-10-01",
  compatibilityFlags = ["experimental"],
  durableObjectNamespaces = [(className = "Supervisor", uniqueKey = "supervisor", enableSql = true)],
  durableObjectStorage = (localDisk = "disk"),
  bindings = [
    (name = "SESSIONS", durableObjectNamespace = "Supervisor"),
    (name = "LOADER", workerLoader = (id = "machines")),
  ],
);
