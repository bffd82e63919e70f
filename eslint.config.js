// The lint rules of the TypeScript here: the client, the machine's page, and what runs in the guest.

import eslint from "@eslint/js";
import reactHooks from "eslint-plugin-react-hooks";
import { defineConfig } from "eslint/config";
import tseslint from "typescript-eslint";

export default defineConfig(
  {
    ignores: [
      // Projects of their own, whose compiler and tests are run by tests/cli/test_init.py.
      "templates/",
      "**/dist/",
      "**/node_modules/",
      "**/.venv/",
      "build/",
      "machinehub/",
      "tests/",
      "examples/",
      "bench/",
    ],
  },
  eslint.configs.recommended,
  {
    files: ["**/*.ts", "**/*.tsx"],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: {
      parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname },
    },
    rules: {
      // A number in a text is what it looks like.
      "@typescript-eslint/restrict-template-expressions": ["error", { allowNumber: true }],
      "@typescript-eslint/restrict-plus-operands": ["error", { allowNumberAndString: true }],
      "@typescript-eslint/no-unnecessary-condition": [
        "error",
        { allowConstantLoopConditions: true },
      ],
      "@typescript-eslint/no-invalid-void-type": ["error", { allowAsThisParameter: true }],
      // A function that returns nothing may end with a call that returns nothing.
      "@typescript-eslint/no-confusing-void-expression": [
        "error",
        { ignoreArrowShorthand: true, ignoreVoidReturningFunctions: true },
      ],
      "@typescript-eslint/no-unused-vars": [
        "error",
        { argsIgnorePattern: "^_", varsIgnorePattern: "^_" },
      ],
    },
  },
  {
    files: ["clients/page/src/**/*.tsx", "clients/js/src/react.ts"],
    plugins: { "react-hooks": reactHooks },
    rules: { "react-hooks/rules-of-hooks": "error" }, // what an effect depends on is chosen by hand
  },
  {
    // Its purpose is to take methods off their objects, before a machine can replace them.
    files: ["sandbox/guest/prelude/intrinsics.ts"],
    rules: { "@typescript-eslint/unbound-method": "off" },
  },
  {
    // Of untyped machines everything may be asked; the libraries come without types.
    files: ["clients/js/test/**", "sandbox/guest/prelude/polyfills.ts"],
    rules: {
      "@typescript-eslint/no-unsafe-member-access": "off",
      "@typescript-eslint/no-unsafe-assignment": "off",
    },
  },
  {
    files: ["**/*.mjs"],
    languageOptions: { globals: { process: "readonly", console: "readonly", URL: "readonly" } },
  },
);
