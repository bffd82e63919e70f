// Without <StrictMode>: it would connect twice, and Stately's hook never closes a socket.
import { createRoot } from "react-dom/client";
import { Counter } from "./counter";

createRoot(document.getElementById("root")!).render(<Counter />);
