// The page's entry: which page it is.

import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { warmUp } from "./chart/layout.ts";
import { MachinePage } from "./machine.tsx";
import { readRoute, usePath } from "./route.ts";
import { Welcome } from "./welcome.tsx";
import "./style.css";

function App() {
  const path = usePath();
  const route = readRoute(path);
  return route.machine === "" ? <Welcome /> : <MachinePage key={path} route={route} />;
}

if (readRoute(location.pathname).machine !== "") warmUp();
createRoot(document.getElementById("root") as HTMLElement).render(
  <StrictMode>
    <App />
  </StrictMode>,
);
