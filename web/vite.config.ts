import vue from '@vitejs/plugin-vue'
import { defineConfig } from 'vite'

// For `npm run dev`: a running service, which this server passes the page's requests on to.
const service = 'http://127.0.0.1:8000'

export default defineConfig({
  // Relative addresses: the page also works behind a proxy that puts it under a path.
  base: './',
  plugins: [vue()],
  define: {
    __VUE_OPTIONS_API__: 'false',
    __VUE_PROD_DEVTOOLS__: 'false',
    __VUE_I18N_FULL_INSTALL__: 'false',
    __VUE_I18N_LEGACY_API__: 'false',
  },
  build: {
    outDir: '../twin/web',
    emptyOutDir: true,
    assetsInlineLimit: 0,
    license: { fileName: 'licenses.md' },
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 800,
  },
  server: {
    proxy: {
      '/api': service,
      '/healthz': service,
      '/ws': { target: service, ws: true },
    },
  },
})
